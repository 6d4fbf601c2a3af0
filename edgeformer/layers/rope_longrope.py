"""LongRoPE scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeformer.layers.rope import RopeScaling, base_frequencies
from edgeformer.ops import Ops
from edgeformer.ops.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling(RopeScaling):
    """Searched factors per channel pair: one set up to `original_context` tokens, one beyond (Ding et al. 2024, 2402.13753).

    `temperature` scales cos and sin. The total sequence length selects the set at each step. `restarts`: when a sequence grows
    beyond `original_context`, its cache is recomputed, as in Phi-3's `generate`; otherwise cached keys keep the angles they
    were stored with.
    """

    kind: ClassVar[str] = "rope_longrope"
    per_length: ClassVar[bool] = True
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_context: int
    temperature: float
    restarts: bool = False

    def __post_init__(self) -> None:
        self.require_positive(original_context=self.original_context, temperature=self.temperature)
        self.require(all(f > 0 for f in (*self.short_factor, *self.long_factor)), "factors must be positive")
        self.require(
            len(self.short_factor) == len(self.long_factor),
            f"short_factor ({len(self.short_factor)} entries) and long_factor ({len(self.long_factor)}) must be equally long",
        )

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        self.require(
            len(self.short_factor) == dim // 2, f"got {len(self.short_factor)} factors for {dim // 2} channel pairs"
        )
        return base_frequencies(dim, theta) / np.array([self.short_factor, self.long_factor])

    def row(self, ops: Ops, length: Tensor) -> Tensor:
        return ops.clip(length - self.original_context, 0, 1)

    @property
    def restarts_at(self) -> int | None:
        return self.original_context if self.restarts else None

    def magnitude(self) -> float:
        return self.temperature
