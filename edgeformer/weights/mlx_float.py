"""MLX's quantization to small floats: mxfp4, mxfp8 and nvfp4, read as float32.

`<path>.weight` is uint32, its codes in order from the lowest bits; `<path>.scales` is a byte per group, without biases.
Codes are E2M1 (4 bits) or E4M3 (8 bits); scales are powers of two (E8M0, in groups of 32) or, of nvfp4, E4M3 in groups of 16 (OCP
Microscaling Formats 1.0; https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.weights.safetensors_file import StoredTensor, check_finite, read_raw


@dataclass(frozen=True)
class Mode:
    """A mode of `mlx.core.quantize`: bits of a code, inputs per scale, and the types of codes and scales."""

    bits: int
    group_size: int
    code: np.dtype
    scale: np.dtype


_E4M3, _E8M0, _E2M1 = (
    np.dtype(t) for t in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.float4_e2m1fn)
)
MODES = {
    "mxfp4": Mode(4, 32, _E2M1, _E8M0),
    "mxfp8": Mode(8, 32, _E4M3, _E8M0),
    "nvfp4": Mode(4, 16, _E2M1, _E4M3),
}


@dataclass(frozen=True)
class MlxFloatTensor(StoredTensor):
    """A weight in one of the modes; `shape` is the weight's, `offset` and `nbytes` locate its codes."""

    scales: StoredTensor
    mode: str

    @property
    def raw(self) -> bool:
        """False: codes are not values."""
        return False

    def parts(self) -> tuple[StoredTensor, ...]:
        return (self, self.scales)

    def read(self) -> np.ndarray:
        """The weight in float32, exactly code · scale.

        Raises:
            CheckpointError: the file is truncated, or a value isn't finite.
        """
        mode = MODES[self.mode]
        packed = read_raw(self, np.dtype(np.uint8), (*self.shape[:-1], self.shape[-1] * mode.bits // 8))
        codes = packed if mode.bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(self.shape)
        table = np.arange(1 << mode.bits, dtype=np.uint8).view(mode.code).astype(np.float32)
        scales = read_raw(self.scales, np.dtype(np.uint8), self.scales.shape).view(mode.scale).astype(np.float32)
        groups = table[codes].reshape(*scales.shape, mode.group_size) * scales[..., None]
        values = groups.reshape(self.shape)
        check_finite(self, values.reshape(-1))
        return values


def mlx_float(weight: StoredTensor, scales: StoredTensor, mode: str, group_size: object, where: str) -> MlxFloatTensor:
    """The weight that codes and scales stand for.

    Raises:
        CheckpointError: types, shapes or the group size are not this mode's.
    """
    known = MODES[mode]
    inputs = weight.shape[-1] * 32 // known.bits if weight.shape else 0
    fits = (
        weight.dtype == "U32"
        and scales.dtype == "U8"
        and group_size in (None, known.group_size)
        and scales.shape == (*weight.shape[:-1], inputs // known.group_size)
        and inputs % known.group_size == 0
    )
    if not fits:
        raise CheckpointError(
            f"{where} has codes {list(weight.shape)} of type {weight.dtype} and scales {list(scales.shape)} of type"
            f" {scales.dtype} for groups of {group_size}: that is not MLX's {mode}, with groups of {known.group_size}"
        )
    place = weight.name, weight.file, weight.offset, weight.nbytes
    return MlxFloatTensor(*place, mode.upper(), (*weight.shape[:-1], inputs), scales, mode, identity=weight.identity)
