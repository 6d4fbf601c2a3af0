"""Storage of an ONNX file's weights: streamed into one data file, or linked to the user's checkpoint.

ONNX external data lets `model.onnx` point at (file, offset, length). Copying holds at most one tensor in memory; tensors that
keep their stored dtype and layout are copied from file to file in chunks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeformer.errors import ExportError
from edgeformer.spec import Model
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import QUANTIZED, SCALES, Format, GroupTensor, QuantizedTensor, flip_sign
from edgeformer.weights.rounding import group_format, in_groups
from edgeformer.weights.safetensors_file import DTYPES, StoredTensor, check_finite

ONNX_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
PRECISIONS = {
    "fp32": (ir.DataType.FLOAT, ir.DataType.FLOAT),
    "fp16": (ir.DataType.FLOAT16, ir.DataType.FLOAT16),
    "bf16": (ir.DataType.BFLOAT16, ir.DataType.FLOAT),
}
"""precision -> (storage type, compute type). bf16 is for storage only: ONNX Runtime's CPU provider computes in float32."""

_CHUNK = 8 << 20
_ALIGN = 4096  # so that runtimes can map the data
Progress = Callable[[int], None]


Storage = ir.DataType | Format
"""How an exported tensor is stored: a float dtype or a group format."""


@dataclass(frozen=True)
class StoragePlan:
    """What an export writes: the weights to read, canonical name -> how each is stored, and the dtype of activations."""

    precision: str
    weights: Weights
    storage: dict[str, Storage]
    compute: ir.DataType


def plan(spec: Model, weights: Weights, precision: str | None, link: bool, keep: Sequence[str] = ()) -> StoragePlan:
    """Decide how every tensor is stored.

    Args:
        spec: the model.
        weights: the checkpoint's weights.
        precision: one of `PRECISIONS`, or a group format (`q4`, `q8`; `mixed` for a checkpoint that mixes them), with the
            suffix `f16` for fp16 activations and scales. None: group formats as stored, anything else fp32.
        link: whether the checkpoint's tensors must be used in place.
        keep: name patterns of tensors that q4 and q8 leave unquantized.

    Raises:
        ExportError: the precision is unknown, or impossible for these weights or with linking.
        CheckpointError: a weight can't be quantized in groups.
    """
    has = group_format(weights)
    precision = precision or has or "fp32"
    if precision in PRECISIONS:
        if keep:
            raise ExportError(
                f"--keep applies only to {' and '.join(QUANTIZED)}; --precision {precision} quantizes nothing"
            )
        plain, compute = _plain_storage(weights, precision, link)
        return StoragePlan(precision, weights, {**plain}, compute)
    base = precision.removesuffix("f16")
    if base not in QUANTIZED and base != (has or "q4"):
        known = ", ".join((*PRECISIONS, *QUANTIZED, *(f"{q}f16" for q in QUANTIZED)))
        raise ExportError(f"unknown precision {precision!r}; use one of {known}")
    if has is None and link:
        raise ExportError(
            f"--weights link uses tensors as stored, and these are not {base}: run `edgeformer quantize` first and export its"
            " output, or use --weights copy"
        )
    weights = in_groups(spec, weights, base, keep)
    compute = ir.DataType.FLOAT16 if precision.endswith("f16") else ir.DataType.FLOAT
    storage: dict[str, Storage] = {}
    for name, source in weights.sources.items():
        stored = source.stored
        if isinstance(stored, QuantizedTensor):
            storage[name] = stored.format
        else:
            storage[name] = ONNX_DTYPES.get(stored.dtype, compute) if link else compute
    return StoragePlan(precision, weights, storage, compute)


def _plain_storage(weights: Weights, precision: str, link: bool) -> tuple[dict[str, ir.DataType], ir.DataType]:
    storage, compute = PRECISIONS[precision]
    # a plain tensor holds values of its type; every other kind reads as floats
    unknown = {s.stored.dtype for s in weights.sources.values() if type(s.stored) is StoredTensor} - set(DTYPES)
    quantized = weights.dtypes() - unknown - set(DTYPES)
    if unknown:
        raise ExportError(
            f"weights of dtype {', '.join(sorted(unknown))} can't be exported; supported dtypes are {', '.join(DTYPES)}"
        )
    if not link:
        return dict.fromkeys(weights, storage), compute
    if quantized:
        raise ExportError(
            f"the checkpoint's weights are quantized ({', '.join(sorted(quantized))}) and this export dequantizes them, so they"
            " can't be linked; use --weights copy"
        )
    stored = {ONNX_DTYPES[d] for d in weights.dtypes()}
    allowed = {"fp32": set(ONNX_DTYPES.values()), "fp16": {storage}, "bf16": {storage}}[precision]
    if not stored <= allowed:
        names = ", ".join(sorted(weights.dtypes()))
        raise ExportError(
            f"--weights link uses tensors as stored ({names}), so --precision {precision} is not possible;"
            " use --weights copy, or --precision fp32 (which reads any stored dtype and computes in float32)"
        )
    return {name: ONNX_DTYPES[source.stored.dtype] for name, source in weights.sources.items()}, compute


class DataWriter:
    """Appends tensors to one external data file; returns an `ExternalTensor` for each."""

    def __init__(self, folder: Path, name: str, progress: Progress):
        self.folder, self.name, self.progress, self.end = folder, name, progress, 0
        self._file = (folder / name).open("xb")  # exclusive: a file linked there must not be overwritten

    def _start(self, nbytes: int) -> int:
        if nbytes >= _ALIGN:
            self.end += -self.end % _ALIGN
        self._file.seek(self.end)
        return self.end

    def _tensor(self, name: str, offset: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
        length = self._file.tell() - offset
        self.end = offset + length
        return ir.ExternalTensor(
            self.name, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self.folder
        )

    def array(self, name: str, array: np.ndarray) -> ir.ExternalTensor:
        """Write an array."""
        offset = self._start(array.nbytes)
        self._file.write(_bytes(array))
        return self._tensor(name, offset, ir.DataType.from_numpy(array.dtype), array.shape)

    def source(self, name: str, source: Source, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
        """Copy a checkpoint's tensor, converting it to `dtype`."""
        stored = source.stored
        same = ONNX_DTYPES.get(stored.dtype) == dtype
        offset = self._start(int(math.prod(stored.shape) * dtype.itemsize))
        if (
            source.part is not None or not stored.raw
        ):  # sliced, transposed, reordered or quantized: it has to be in memory
            self._file.write(_bytes(_convert(source.read(), dtype)))
            self.progress(int(stored.nbytes * source.share))
        else:
            with stored.open() as f:
                f.seek(stored.offset)
                left = stored.nbytes
                while left:
                    chunk = f.read(min(_CHUNK, left))
                    if not chunk:
                        raise ExportError(f"{stored.file} ends before the end of tensor {stored.name}")
                    values = np.frombuffer(chunk, DTYPES[stored.dtype])
                    check_finite(stored, values, (stored.nbytes - left) // values.itemsize)
                    left -= len(chunk)
                    if not same:
                        chunk = _bytes(_convert(values, dtype))
                    self._file.write(chunk)
                    self.progress(_CHUNK if left else stored.nbytes % _CHUNK or _CHUNK)
        return self._tensor(name, offset, dtype, shape)

    def quantized(
        self, name: str, source: Source, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> tuple[ir.ExternalTensor, ir.ExternalTensor]:
        """Write a weight's codes, declared as `dtype` and `shape`, and its fp16 scales."""
        assert isinstance(source.stored, QuantizedTensor)
        format, (codes, scales) = source.stored.format, source.stored.quantized()
        if dtype in (ir.DataType.INT4, ir.DataType.INT8):
            codes = flip_sign(codes, format)
        offset = self._start(codes.nbytes)
        self._file.write(_bytes(codes))
        first = self._tensor(name, offset, dtype, shape)
        second = self.array(name + SCALES, scales)
        self.progress(source.stored.nbytes)
        return first, second

    def close(self) -> int:
        """Flush to disk and close; returns the number of bytes written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.end


def _bytes(x: np.ndarray) -> memoryview:
    """The array's bytes without a copy, viewed as uint8 because bfloat16 has no buffer format."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def _convert(x: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    if ir.DataType.from_numpy(x.dtype) == dtype:
        return x
    if dtype == ir.DataType.FLOAT16:
        y = x.astype(np.float32)
        if np.abs(y, out=y).max(initial=0.0) > 65504:
            raise ExportError("a weight exceeds fp16's largest value (65504); use --precision fp32 or bf16")
    return x.astype(dtype.numpy())


def link(t: StoredTensor, name: str, folder: Path, location: str) -> ir.ExternalTensor:
    """A checkpoint's tensor, in place, as an initializer; `location` is the file's name beside the ONNX file."""
    return external(t, name, folder, location, ONNX_DTYPES[t.dtype], t.shape)


def link_quantized(
    t: GroupTensor, name: str, folder: Path, location: str, dtype: ir.DataType, shape: tuple[int, ...]
) -> tuple[ir.ExternalTensor, ir.ExternalTensor]:
    """A quantized weight's codes and scales, in place.

    Raises:
        ExportError: the target stores codes in another form.
    """
    if dtype != ir.DataType.UINT8:
        raise ExportError(
            "this target needs signed codes, so the checkpoint's unsigned ones can't be linked; use --weights copy"
        )
    return (
        external(t, name, folder, location, dtype, shape),
        external(t.scales, name + SCALES, folder, location, ir.DataType.FLOAT16, t.scales.shape),
    )


def external(
    t: StoredTensor, name: str, folder: Path, location: str, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.ExternalTensor:
    """The bytes of a stored tensor as an initializer of the given dtype and shape."""
    return ir.ExternalTensor(location, t.offset, t.nbytes, dtype, shape=ir.Shape(shape), name=name, base_dir=folder)
