"""Llama 3's RoPE scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeformer.layers.rope import RopeScaling, base_frequencies


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RopeScaling):
    """Divide the frequencies of long wavelengths by `factor`, keep short ones, blend in between (Llama 3.1 reference code).

    A wavelength is long above original_context / low_freq_factor, short below original_context / high_freq_factor.
    """

    kind: ClassVar[str] = "rope_llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        self.require_positive(factor=self.factor, original_context=self.original_context)
        self.require(
            self.low_freq_factor < self.high_freq_factor,
            f"low_freq_factor ({self.low_freq_factor}) must be below high_freq_factor ({self.high_freq_factor})",
        )

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        base = base_frequencies(dim, theta)
        turns = self.original_context * base / (2 * np.pi)  # rotations over the original context
        kept = np.clip(
            (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0
        )  # 1: short wavelength, kept
        return base * (kept + (1 - kept) / self.factor)
