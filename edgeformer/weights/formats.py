"""`q4` and `q8`: one symmetric format with groups of 32, which ONNX Runtime, MLX, llama.cpp and PyTorch all hold exactly.

A weight is `scale · (code − zero)`: one fp16 scale per 32 consecutive inputs, codes of 4 or 8 bits, zero = 8 or 128. Codes
are packed with the first in the lowest bits, `[outputs, inputs · bits / 8]` bytes: ONNX Runtime's MatMulNBits and,
read as little-endian uint32, MLX's affine mode take them unchanged; GGUF's Q4_0 and Q8_0 hold the same numbers in another order.
The product has at most 11 + 8 significant bits, so it is exact in float32, however it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.weights.safetensors_file import StoredTensor, read_raw

GROUP = 32
"""Inputs per scale."""
SCALES = ".scales"
"""Ending of the stored name of a tensor's scales; the codes have the tensor's own name."""
_CHUNK = 1 << 20  # elements quantized at once, so that they stay in a core's cache


@dataclass(frozen=True)
class Format:
    """A width of codes. Quantizing to it produces codes in `low .. 2**bits - 1`. `gguf` is the type's name in GGUF,
    `gguf_file_type` llama.cpp's number for a file of this type."""

    name: str
    bits: int
    low: int
    gguf: str
    gguf_file_type: int

    @property
    def zero(self) -> int:
        """The code of 0.0."""
        return 1 << (self.bits - 1)

    @property
    def high(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, of codes and scales together."""
        return self.bits + 16 / GROUP

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the packed codes of a weight."""
        return (*shape[:-1], shape[-1] * self.bits // 8)

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a weight."""
        return (*shape[:-1], shape[-1] // GROUP)


QUANTIZED = {f.name: f for f in (Format("q4", 4, 0, "Q4_0", 2), Format("q8", 8, 1, "Q8_0", 7))}
"""Formats by name. q8 doesn't use code 0, as GGUF's Q8_0 doesn't: −128 · 127 products overflow in some kernels."""


@dataclass(frozen=True)
class QuantizedTensor(StoredTensor):
    """A quantized weight in place of a stored tensor; `shape` is the weight's. `read` gives float32."""

    format: Format

    @property
    def raw(self) -> bool:
        """False: codes are not values."""
        return False

    @property
    def grouped(self) -> bool:
        """Whether the file stores codes and scales as `quantized` returns them."""
        return False

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        """Packed codes, uint8 `[..., inputs · bits / 8]`, and scales, float16 `[..., inputs / 32]`."""
        raise NotImplementedError

    def read(self) -> np.ndarray:
        """The weight in float32, exactly scale · (code − zero)."""
        return dequantize(*self.quantized(), self.format)


@dataclass(frozen=True)
class GroupTensor(QuantizedTensor):
    """Codes and scales that are stored separately; `offset` and `nbytes` are the codes'. `signed`: code − zero is stored, in
    two's complement."""

    scales: StoredTensor
    signed: bool = False

    @property
    def grouped(self) -> bool:
        return not self.signed

    def parts(self) -> tuple[StoredTensor, ...]:
        return (self, self.scales)

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        codes = read_raw(self, np.dtype(np.uint8), self.format.packed_shape(self.shape))
        if self.signed:
            codes = flip_sign(codes, self.format)
        shape = self.format.scales_shape(self.shape)
        if self.scales.dtype != "F32":
            return codes, read_raw(self.scales, np.dtype(np.float16), shape)
        scales = read_raw(self.scales, np.dtype(np.float32), shape)  # as Core AI needs them in float32 arithmetic
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), scales, equal_nan=True):
            raise CheckpointError(f"{self.scales.file}: the scales of {self.name} are no fp16 numbers")
        return codes, halves


def join(stored: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """A checkpoint's tensors, with codes and scales joined into one `GroupTensor`; the shapes determine the format.

    Raises:
        CheckpointError: types or shapes match neither q4 nor q8.
    """
    out = dict(stored)
    for name, scales in stored.items():
        if not name.endswith(SCALES) or (codes := stored.get(base := name.removesuffix(SCALES))) is None:
            continue
        inputs = scales.shape[-1] * GROUP
        fitting = [f for f in QUANTIZED.values() if codes.shape == f.packed_shape((*scales.shape[:-1], inputs))]
        if (codes.dtype, scales.dtype) != ("U8", "F16") or not fitting:
            raise CheckpointError(
                f"{where}: {base} has codes {list(codes.shape)} of type {codes.dtype} and scales {list(scales.shape)} of type"
                f" {scales.dtype}; {' and '.join(QUANTIZED)} have U8 codes and one F16 scale per {GROUP} inputs"
            )
        format = fitting[0]
        shape = (*scales.shape[:-1], inputs)
        out[base] = GroupTensor(
            codes.name,
            codes.file,
            codes.offset,
            codes.nbytes,
            format.name.upper(),
            shape,
            format,
            scales,
            identity=codes.identity,
        )
        del out[name]
    return out


def flip_sign(packed: np.ndarray, format: Format) -> np.ndarray:
    """Convert packed codes to packed two's complement of code − zero, and back."""
    return packed ^ np.uint8(0x88 if format.bits == 4 else 0x80)


def pack(codes: np.ndarray, format: Format) -> np.ndarray:
    """uint8 codes `[..., inputs]` as bytes `[..., inputs · bits / 8]`, the first code in the lowest bits."""
    return codes if format.bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: np.ndarray, format: Format) -> np.ndarray:
    """The inverse of `pack`."""
    if format.bits == 8:
        return packed
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = packed & 15, packed >> 4
    return codes


def dequantize(packed: np.ndarray, scales: np.ndarray, format: Format) -> np.ndarray:
    """float32 weights of packed codes and float16 scales."""
    codes = unpack(packed, format).reshape(*scales.shape, GROUP)
    x = codes.astype(np.float32)
    x -= format.zero
    x *= scales.astype(np.float32)[..., None]
    return x.reshape(*scales.shape[:-1], -1)


Rounding = Callable[[np.ndarray, Format], tuple[np.ndarray, np.ndarray]]
"""Groups float32 `[n, 32]` -> codes uint8 `[n, 32]` and scales float32 `[n]`."""


def nearest(groups: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Round to nearest, bit for bit as llama.cpp's package `gguf` does for Q4_0 and Q8_0.

    q4: the element of largest magnitude becomes code 0, whatever its sign. q8: it becomes ±127.
    """
    if format.bits == 8:
        scales = np.abs(groups).max(-1) / np.float32(127)
        y = groups * _reciprocal(scales)[:, None]
        whole = np.trunc(y)
        codes = whole + np.trunc((y - whole) * 2)  # halves away from zero
        return (codes + format.zero).astype(np.uint8), scales
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)[:, 0]
    scales = largest / np.float32(-format.zero)
    y = groups * _reciprocal(scales)[:, None]
    y += np.float32(format.zero + 0.5)
    return np.minimum(y, format.high).astype(np.uint8), scales


def _reciprocal(scales: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / scales
    inverse[~np.isfinite(inverse)] = 0  # a group of zeros (or of numbers that fp16 scales can't reach)
    return inverse


def quantize(
    weight: np.ndarray, format: Format, rounding: Rounding = nearest, *, name: str = "a weight", threads: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Packed codes and float16 scales of a weight `[..., inputs]` of any float type; a chunk of rows at a time.

    Raises:
        CheckpointError: the inputs are not a multiple of 32, or values are not finite or too large for an fp16 scale.
    """
    check_divides(weight.shape, name)
    rows = weight.reshape(-1, weight.shape[-1])
    packed = np.empty(format.packed_shape(rows.shape), np.uint8)
    scales = np.empty(format.scales_shape(rows.shape), np.float16)
    step = max(_CHUNK // rows.shape[1], 1)

    def work(start: int) -> None:
        part = rows[start : start + step].astype(np.float32).reshape(-1, GROUP)
        if not np.isfinite(part).all():
            raise CheckpointError(f"{name} holds values that are not finite; it can't be quantized")
        codes, found = rounding(part, format)
        if np.abs(found).max(initial=0) > 65504:
            raise CheckpointError(f"{name} holds weights up to {np.abs(part).max():.3g}: too large for an fp16 scale")
        packed[start : start + step] = pack(codes, format).reshape(-1, packed.shape[1])
        scales[start : start + step] = found.astype(np.float16).reshape(-1, scales.shape[1])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, len(rows), step)))
    return packed.reshape(format.packed_shape(weight.shape)), scales.reshape(format.scales_shape(weight.shape))


def check_divides(shape: tuple[int, ...], name: str) -> None:
    """Refuse a weight whose inputs can't be divided into groups.

    Raises:
        CheckpointError: they can't; the message names the weight.
    """
    if shape[-1] % GROUP:
        raise CheckpointError(
            f"{name} has {shape[-1]} inputs, which is not a multiple of the group size {GROUP}, so it can't be stored in"
            f" {' or '.join(QUANTIZED)}; leave it unquantized with --keep"
        )


def widest(formats: Iterable[Format]) -> str:
    """The precision of a model whose weights have these formats: the format's name, or `mixed`."""
    found = {f.name for f in formats}
    return found.pop() if len(found) == 1 else "mixed"
