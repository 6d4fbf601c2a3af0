"""Weights of 4-bit floats (E2M1), two to a byte, with a scale per group: MXFP4 and NVFP4 (OCP Microscaling Formats 1.0)."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from edgeformer.weights.foreign._groups import ForeignTensor, floats
from edgeformer.weights.safetensors_file import read_raw

_VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


@dataclass(frozen=True)
class SmallFloatTensor(ForeignTensor):
    """code · scale, or code · scale / global (· global unless `inverse`). pieces: codes, the first in a byte's low half; scales,
    uint8 exponents (E8M0) or F8_E4M3, one per group; and the global one or none."""

    group: int
    inverse: bool = True

    def values(self) -> np.ndarray:
        codes, scales, *rest = self.pieces
        packed = read_raw(codes, np.dtype(np.uint8), codes.shape)
        kind = ml_dtypes.float8_e4m3fn if scales.dtype == "F8_E4M3" else ml_dtypes.float8_e8m0fnu
        factors = read_raw(scales, np.dtype(np.uint8), scales.shape).view(kind).astype(np.float32)
        if rest:
            overall = floats(rest[0]).reshape(-1)[0]
            factors = factors / overall if self.inverse else factors * overall
        x = np.stack([_VALUES[packed & 15], _VALUES[packed >> 4]], -1)
        return x.reshape(*factors.shape, self.group) * factors[..., None]
