"""Linear (position interpolation) RoPE scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeformer.layers.rope import RopeScaling, base_frequencies


@dataclass(frozen=True, kw_only=True)
class LinearScaling(RopeScaling):
    """Divide every frequency by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    kind: ClassVar[str] = "rope_linear"
    factor: float

    def __post_init__(self) -> None:
        self.require(self.factor > 0, f"factor must be positive, got {self.factor}")

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        return base_frequencies(dim, theta) / self.factor
