"""Which keys a query may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.spec import Node


@dataclass(frozen=True, kw_only=True)
class Mask(Node):
    """`causal`: only keys at or before the query. `window`: only the nearest `window` positions, including the query's own.
    `chunk`: only keys in the query's own chunk of `chunk` positions. All given conditions are combined with AND. `prefix`: the
    first `step.prefix` tokens are always visible (a prefix LM: Raffel et al. 2019, section 3.2.1; ChatGLM).

    Sliding windows: Beltagy et al. 2020 (Longformer); Jiang et al. 2023 (Mistral) count the same way.
    Chunks: Llama 4 (Meta 2025).
    """

    kind: ClassVar[str] = "mask"
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    prefix: bool = False

    def __post_init__(self) -> None:
        self.require_positive(window=self.window, chunk=self.chunk)

    def seen(self, position: int, length: int) -> int:
        """Number of keys visible to the query at `position` (from 0) in a sequence of `length` tokens, ignoring a prefix."""
        first, end = 0, position + 1 if self.causal else length
        if self.window is not None:
            first = max(first, position - self.window + 1)
            end = min(end, position + self.window)
        if self.chunk is not None:
            start = position - position % self.chunk
            first, end = max(first, start), min(end, start + self.chunk)
        return end - first

    @property
    def plain(self) -> bool:
        """Whether the mask is causal, with no other condition."""
        return self.causal and self.window is None and self.chunk is None and not self.prefix
