"""Where an ONNX file's weights lie: copied into one data file as a stream, or linked into the user's checkpoint.

External data is the part of ONNX that lets `model.onnx` point at (file, offset, length). Copying never holds more than one
tensor; tensors kept in their stored type and layout go from file to file in chunks.
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
"""precision -> (storage type, compute type). bf16 is a storage type: ONNX Runtime's CPU provider computes it in float32."""

_CHUNK = 8 << 20
_ALIGN = 4096  # so that runtimes can map the data
Progress = Callable[[int], None]


Storage = ir.DataType | Format
"""How an exported tensor is held."""


@dataclass(frozen=True)
class StoragePlan:
    """What an export writes: the weights it reads, canonical name -> how each is held, and the type of activations."""

    precision: str
    weights: Weights
    storage: dict[str, Storage]
    compute: ir.DataType


def plan(spec: Model, weights: Weights, precision: str | None, link: bool, keep: Sequence[str] = ()) -> StoragePlan:
    """Decide how every tensor is held.

    Args:
        spec: the model.
        weights: as the checkpoint has them.
        precision: one of `PRECISIONS`, or a group format (`q4`, `q8`; `mixed` for a checkpoint that mixes them), with `f16`
            behind it if activations and scales are to be fp16. None: group formats as stored, anything else fp32.
        link: whether tensors must be used where they lie.
        keep: patterns of tensors that rounding to q4 or q8 leaves as they are.

    Raises:
        ExportError: an unknown precision, or one that these weights or a link can't give.
        CheckpointError: a weight that can't be held in groups.
    """
    has = group_format(weights)
    precision = precision or has or "fp32"
    if precision in PRECISIONS:
        if keep:
            raise ExportError(
                f"--keep is for {' and '.join(QUANTIZED)}; --precision {precision} rounds nothing to groups"
            )
        plain, compute = _plain_storage(weights, precision, link)
        return StoragePlan(precision, weights, {**plain}, compute)
    base = precision.removesuffix("f16")
    if base not in QUANTIZED and base != (has or "q4"):
        known = ", ".join((*PRECISIONS, *QUANTIZED, *(f"{q}f16" for q in QUANTIZED)))
        raise ExportError(f"precision {precision!r} is not known; it is one of {known}")
    if has is None and link:
        raise ExportError(
            f"--weights link uses tensors as they are stored, and these are not {base}: `edgeformer quantize` first, and"
            " export what it writes; or use --weights copy"
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
    quantized = {d for d in weights.dtypes() if d.startswith(("AFFINE", "Q"))}
    if unknown := weights.dtypes() - set(DTYPES) - quantized:
        raise ExportError(
            f"weights of type {', '.join(sorted(unknown))} can't be exported; they must be {', '.join(DTYPES)}"
        )
    if not link:
        return dict.fromkeys(weights, storage), compute
    if quantized:
        raise ExportError(
            f"the checkpoint's weights are quantized ({', '.join(sorted(quantized))}), which this ONNX export dequantizes,"
            " so it can't point at them; use --weights copy"
        )
    stored = {ONNX_DTYPES[d] for d in weights.dtypes()}
    allowed = {"fp32": set(ONNX_DTYPES.values()), "fp16": {storage}, "bf16": {storage}}[precision]
    if not stored <= allowed:
        names = ", ".join(sorted(weights.dtypes()))
        raise ExportError(
            f"--weights link uses tensors as they are stored ({names}), so it can't give --precision {precision};"
            " use --weights copy, or --precision fp32 (which reads any stored type and computes in float32)"
        )
    return {name: ONNX_DTYPES[source.stored.dtype] for name, source in weights.sources.items()}, compute


class DataWriter:
    """Appends tensors to one external data file; gives each an `ExternalTensor`."""

    def __init__(self, folder: Path, name: str, progress: Progress):
        self.folder, self.name, self.progress, self.end = folder, name, progress, 0
        self._file = (folder / name).open("xb")  # never over a file that was linked there

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
        if source.part is not None or not stored.raw:  # cut, transposed, reordered or quantized: it has to be in memory
            self._file.write(_bytes(_convert(source.read(), dtype)))
            self.progress(int(stored.nbytes * source.share))
        else:
            with stored.open() as f:
                f.seek(stored.offset)
                left = stored.nbytes
                while left:
                    chunk = f.read(min(_CHUNK, left))
                    if not chunk:
                        raise ExportError(f"{stored.file} ended while tensor {stored.name} was copied")
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
        """Flush to disk; the number of bytes written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.end


def _bytes(x: np.ndarray) -> memoryview:
    """The array's bytes without a copy; bfloat16 has no buffer format of its own."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def _convert(x: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    if ir.DataType.from_numpy(x.dtype) == dtype:
        return x
    if dtype == ir.DataType.FLOAT16:
        y = x.astype(np.float32)
        if np.abs(y, out=y).max(initial=0.0) > 65504:
            raise ExportError("a weight is larger than fp16 can hold (65504); export with --precision fp32 or bf16")
    return x.astype(dtype.numpy())


def link(t: StoredTensor, name: str, folder: Path, location: str) -> ir.ExternalTensor:
    """An initializer that is a checkpoint's tensor where it lies; `location` is the file's name beside the ONNX file."""
    return external(t, name, folder, location, ONNX_DTYPES[t.dtype], t.shape)


def link_quantized(
    t: GroupTensor, name: str, folder: Path, location: str, dtype: ir.DataType, shape: tuple[int, ...]
) -> tuple[ir.ExternalTensor, ir.ExternalTensor]:
    """Codes and scales where they lie.

    Raises:
        ExportError: the target wants the codes in another form.
    """
    if dtype != ir.DataType.UINT8:
        raise ExportError("this target holds codes signed, so it can't point at the checkpoint's; use --weights copy")
    return (
        external(t, name, folder, location, dtype, shape),
        external(t.scales, name + SCALES, folder, location, ir.DataType.FLOAT16, t.scales.shape),
    )


def external(
    t: StoredTensor, name: str, folder: Path, location: str, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.ExternalTensor:
    """The bytes of a stored tensor as an initializer of a type and shape."""
    return ir.ExternalTensor(location, t.offset, t.nbytes, dtype, shape=ir.Shape(shape), name=name, base_dir=folder)
