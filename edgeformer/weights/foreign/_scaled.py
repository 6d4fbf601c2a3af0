"""Weights stored in one byte each, with scales: whole, per row, per group of inputs, or per block of rows and inputs."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.weights.foreign._groups import ForeignTensor, floats
from edgeformer.weights.safetensors_file import StoredTensor, read_raw

CODES = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype(np.int8),
}
"""safetensors' types of codes."""


@dataclass(frozen=True)
class ScaledTensor(ForeignTensor):
    """code · scale · factor. pieces: codes [outputs, inputs], and their scales, each for `block` of rows and inputs (the last
    blocks may be cut)."""

    block: tuple[int, int]
    factor: float = 1.0

    def values(self) -> np.ndarray:
        codes, scales = self.pieces
        x = read_raw(codes, CODES[codes.dtype], codes.shape).astype(np.float32)
        factors = floats(scales) * np.float32(self.factor)
        rows, columns = self.block
        if factors.size == 1:
            x *= factors.reshape(-1)[0]
            return x
        grid = factors.reshape(-(-x.shape[0] // rows), -(-x.shape[1] // columns))
        for at, row in enumerate(grid):  # block row by block row: no copy of all scales
            x[at * rows : (at + 1) * rows] *= np.repeat(row, columns)[: x.shape[1]]
        return x


def scaled(
    codes: StoredTensor,
    scales: StoredTensor,
    kind: str,
    where: str,
    *,
    block: tuple[int, int] | None = None,
    factor: float = 1.0,
) -> ScaledTensor:
    """A weight of codes and scales; without `block`, the scales' shape tells which numbers share one.

    Raises:
        CheckpointError: types or shapes don't fit each other.
    """
    outputs, inputs = codes.shape if len(codes.shape) == 2 else (0, 0)
    shape = tuple(scales.shape)
    if outputs and inputs and codes.dtype in CODES and scales.dtype in ("F32", "F16", "BF16"):
        if shape in ((), (1,), (1, 1)):
            block = (outputs, inputs)
        elif shape in ((outputs,), (outputs, 1)):
            block = (1, inputs)
        elif block is None and len(shape) == 2 and shape[0] == outputs and shape[1] and inputs % shape[1] == 0:
            block = (1, inputs // shape[1])
        elif block is None or shape != (-(-outputs // block[0]), -(-inputs // block[1])):
            block = None
        if block is not None:
            block = min(block[0], outputs), min(block[1], inputs)
            place = codes.name, codes.file, codes.offset, codes.nbytes
            return ScaledTensor(*place, kind, codes.shape, (codes, scales), block, factor, identity=codes.identity)
    raise CheckpointError(
        f"{where}: {codes.name} is {list(codes.shape)} of type {codes.dtype} with scales {list(scales.shape)} of type"
        f" {scales.dtype}; {', '.join(CODES)} [outputs, inputs] with float scales per tensor, row, group or block are read"
    )
