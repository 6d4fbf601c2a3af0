"""The header of a GGUF file: metadata, and the location of each tensor. Every number is checked against the file before use.

As strict as llama.cpp's own reader: little-endian, no duplicate keys or names, no nested arrays, tensors end to end in the order
of their names in the header, each at a multiple of the alignment, all inside the file
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.paths import check_regular
from edgeformer.weights.safetensors_file import Identity, identity

BLOCK_SIZES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""The number of a type in ggml.h -> its name, and elements and bytes of a block."""
MAX_KEYS, MAX_TENSORS, MAX_ELEMENTS, MAX_TEXT = 65_536, 262_144, 4_000_000, 256_000_000
"""Limits of a file: keys, tensors, elements of all its arrays (a vocabulary takes a few million), bytes of all its strings."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """The location of a tensor: `nbytes` bytes at `offset` of the file. Shape: outermost first."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A file's metadata and tensors by name, and the state of the file that they were read from."""

    fields: dict[str, Any]
    tensors: dict[str, TensorInfo]
    state: Identity


def read_gguf_header(file: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        CheckpointError: not a GGUF file, truncated, big-endian, or one that llama.cpp would refuse; the message has the reason.
    """
    if check_regular(file, CheckpointError).st_size == 0:
        raise CheckpointError(f"{file} is empty")
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Scan(data, identity(os.fstat(f.fileno()))).header()
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    except (ValueError, struct.error, IndexError) as e:
        raise CheckpointError(f"{file} can't be read as a GGUF file: {e}") from e


class _Scan:
    """One pass over the header."""

    def __init__(self, data: mmap.mmap, state: Identity):
        self.data, self.state, self.size, self.at = data, state, state[2], 0
        self.elements, self.text_bytes = 0, 0

    def header(self) -> Header:
        if self._bytes(4, "the magic") != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF")
        version = self._scalar("<I")
        if version & 0xFFFF == 0 and version:
            raise ValueError("it is big-endian; only little-endian files can be read")
        if version not in (2, 3):
            raise ValueError(f"it has version {version}; 2 and 3 are supported")
        tensors, keys = self._scalar("<Q"), self._scalar("<Q")
        self._fits(keys, 13, MAX_KEYS, "keys")
        self._fits(tensors, 24, MAX_TENSORS, "tensors")
        fields: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            if key in fields:
                raise ValueError(f"the key {key[:100]!r} occurs twice")
            fields[key] = self._value(self._scalar("<I"), key)
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {str(alignment)[:40]}, not a power of two")
        infos = [self._info() for _ in range(tensors)]
        return Header(fields, self._placed(infos, alignment), self.state)

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = self._text(), self._scalar("<I")
        if dims > 4:
            raise ValueError(f"tensor {name[:100]!r} has {dims} dimensions; at most 4 are allowed")
        shape = tuple(self._scalar("<Q") for _ in range(dims))
        return name, shape[::-1], self._scalar("<I"), self._scalar("<Q")

    def _placed(self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, TensorInfo]:
        """Locate the tensors, each where the one before it ends."""
        start = -(-self.at // alignment) * alignment
        found: dict[str, TensorInfo] = {}
        expected = 0
        for name, shape, kind, offset in infos:
            says = f"tensor {name[:100]!r}"
            if name in found:
                raise ValueError(f"{says} occurs twice")
            if kind not in BLOCK_SIZES:
                raise ValueError(f"{says} has the unknown type {kind}")
            type_name, block, block_bytes = BLOCK_SIZES[kind]
            if shape and shape[-1] % block:
                raise ValueError(f"{says} of type {type_name} has rows of {shape[-1]}, not a multiple of {block}")
            nbytes = math.prod(shape) // block * block_bytes
            if offset != expected:
                raise ValueError(f"{says} lies at {offset} of the data, but the one before it ends at {expected}")
            if start + offset + nbytes > self.size:
                raise ValueError(
                    f"it is truncated: {says} ends at byte {start + offset + nbytes}, but the file has {self.size}. Get it again"
                )
            found[name] = TensorInfo(name, shape, type_name, start + offset, nbytes)
            expected += -(-nbytes // alignment) * alignment
        return found

    def _value(self, kind: int, key: str) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise ValueError(f"the value of {key[:100]!r} has the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self, key: str) -> list[Any]:
        kind, count = self._scalar("<I"), self._scalar("<Q")
        if kind != _TEXT and kind not in _SCALARS:
            raise ValueError(f"{key[:100]!r} is an array of type {kind}, which arrays can't hold")
        size = 8 if kind == _TEXT else struct.calcsize(_SCALARS[kind])
        self.elements += count
        self._fits(count, size, MAX_ELEMENTS, f"elements of {key[:100]!r}")
        if self.elements > MAX_ELEMENTS:
            raise ValueError(f"its arrays have more than {MAX_ELEMENTS:,} elements in total")
        if kind == _TEXT:
            return [self._text() for _ in range(count)]
        raw = self._bytes(count * size, f"the array {key[:100]!r}")
        return np.frombuffer(raw, np.dtype(_SCALARS[kind])).tolist()

    def _text(self) -> str:
        length = self._scalar("<Q")
        self.text_bytes += length
        self._fits(length, 1, MAX_TEXT, "bytes of a string")
        if self.text_bytes > MAX_TEXT:
            raise ValueError(f"its strings have more than {MAX_TEXT:,} bytes in total")
        at = self.at
        try:
            return self._bytes(length, "a string").decode("utf-8")
        except UnicodeDecodeError as e:
            raise ValueError(f"the string at byte {at} is not UTF-8: {e.reason} at {e.start}") from None

    def _scalar(self, form: str) -> Any:
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise ValueError(f"it ends in the middle of {what}")
        self.at += count
        return self.data[self.at - count : self.at]

    def _fits(self, count: int, size: int, limit: int, what: str) -> None:
        """Refuse a count that the rest of the file can't hold, or that exceeds every model's."""
        if count * size > self.size - self.at:
            raise ValueError(f"it declares {count:,} {what}, but only {self.size - self.at:,} more bytes follow")
        if count > limit:
            raise ValueError(f"it has {count:,} {what}; at most {limit:,} are supported")


__all__ = ["BLOCK_SIZES", "Header", "TensorInfo", "read_gguf_header"]
