"""Dynamic NTK-aware RoPE scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeformer.layers.rope import RopeScaling, base_frequencies
from edgeformer.ops import Ops
from edgeformer.ops.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class DynamicScaling(RopeScaling):
    """theta grows with the sequence length beyond `original_context` (bloc97 & emozilla 2023; related to Code Llama's).

    theta' = theta · (factor · L / original − (factor − 1)) ** (dim / (dim − 2)) for a sequence of L tokens. There is one row of
    frequencies per length up to `factor · original_context`; longer sequences use the last row. Cached keys keep the angles
    they were stored with, as in transformers.
    """

    kind: ClassVar[str] = "rope_dynamic"
    per_length: ClassVar[bool] = True
    factor: float
    original_context: int

    def __post_init__(self) -> None:
        self.require_positive(original_context=self.original_context)
        self.require(self.factor >= 1, f"factor must be at least 1, got {self.factor}")

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        self.require(
            dim > 2, f"dim must exceed 2, since a single channel pair has no lower frequency to scale, got {dim}"
        )
        longest = math.ceil(self.factor * self.original_context)
        lengths = np.arange(self.original_context, longest + 1, dtype=np.float64)
        stretch = self.factor * lengths / self.original_context - (self.factor - 1)
        return np.stack([base_frequencies(dim, theta * s ** (dim / (dim - 2))) for s in stretch])

    def row(self, ops: Ops, length: Tensor) -> Tensor:
        longest = math.ceil(self.factor * self.original_context)
        return ops.clip(length, self.original_context, longest) - self.original_context
