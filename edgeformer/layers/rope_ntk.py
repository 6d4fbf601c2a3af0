"""NTK-aware RoPE scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeformer.layers.rope import RopeScaling, base_frequencies


@dataclass(frozen=True, kw_only=True)
class NtkScaling(RopeScaling):
    """theta' = theta · factor ** (dim / (dim − 2)), at any length (bloc97 2023, "NTK-aware scaled RoPE").

    The lowest frequency is divided by `factor`, the highest is unchanged.
    """

    kind: ClassVar[str] = "rope_ntk"
    factor: float

    def __post_init__(self) -> None:
        self.require(self.factor > 0, f"factor must be positive, got {self.factor}")

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        self.require(
            dim > 2, f"dim must exceed 2, since a single channel pair has no lower frequency to scale, got {dim}"
        )
        return base_frequencies(dim, theta * self.factor ** (dim / (dim - 2)))
