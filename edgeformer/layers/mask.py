"""Which keys a query may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.spec import Node


@dataclass(frozen=True, kw_only=True)
class Mask(Node):
    """`causal`: only keys at or before the query. `window`: only the nearest `window` positions, the own one included.

    Sliding windows: Beltagy et al. 2020 (Longformer); Jiang et al. 2023 (Mistral) count the same way.
    """

    kind: ClassVar[str] = "mask"
    causal: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        self.require(self.window is None or self.window > 0, f"window must be positive, got {self.window}")
