"""YaRN RoPE scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeformer.layers.rope import RopeScaling, base_frequencies


@dataclass(frozen=True, kw_only=True)
class YarnScaling(RopeScaling):
    """Interpolate low frequencies, keep high ones, with a linear ramp over channels in between (Peng et al. 2023, 2309.00071).

    The ramp runs between the channels that rotate `beta_fast` and `beta_slow` times over the original context, rounded
    outwards if `truncate`. `temperature` scales cos and sin; the paper's is 0.1·ln(factor) + 1.
    """

    kind: ClassVar[str] = "rope_yarn"
    factor: float
    original_context: int
    temperature: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        self.require_positive(factor=self.factor, original_context=self.original_context, temperature=self.temperature)
        self.require_positive(beta_fast=self.beta_fast, beta_slow=self.beta_slow)

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        self.require(theta > 1, f"theta must exceed 1 for YaRN's ramp, got {theta}")
        base = base_frequencies(dim, theta)

        def channel(turns: float) -> float:  # the channel with this many rotations: eq. 23 solved for the index
            return dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return base / self.factor * ramp + base * (1 - ramp)

    def magnitude(self) -> float:
        return self.temperature
