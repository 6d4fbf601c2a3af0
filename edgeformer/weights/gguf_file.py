"""Read GGUF files lazily: metadata, and the location of each tensor.

Q4_0 and Q8_0 are q4 and q8 with bytes in another order. llama.cpp's other quantized types (K-quants, I-quants, ...) have no
equal elsewhere: they are read as float32, by the package gguf.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError, RuntimeUnavailable
from edgeformer.files.limits import MAX_SIZE
from edgeformer.files.quoting import shown
from edgeformer.weights.formats import GROUP, QUANTIZED, Format, QuantizedTensor, pack, unpack
from edgeformer.weights.gguf_header import read_gguf_header
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.safetensors_file import DTYPES, StoredTensor, check_finite, read_raw

TYPES = tuple(t.safetensors for t in FLOAT_TYPES.values())
BLOCKS = {f.gguf: f for f in QUANTIZED.values()}


FOREIGN = "GGUF_"
"""Prefix of the dtype of tensors in a quantized type that only GGUF has."""


def require_gguf() -> Any:
    """The package `gguf`.

    Raises:
        RuntimeUnavailable: it is not installed; the message has the install line.
    """
    try:
        import gguf
    except ImportError as e:
        raise RuntimeUnavailable('GGUF files need the package gguf; pip install "edgeformer[gguf]"') from e
    return gguf


@dataclass(frozen=True)
class GgufPlain(StoredTensor):
    """An unquantized tensor. `heads`: how many heads its rows form, in llama.cpp's order of rotated channels; 0 for none."""

    heads: int = 0

    @property
    def raw(self) -> bool:
        return not self.heads

    def read(self) -> np.ndarray:
        return separated(read_raw(self, DTYPES[self.dtype], self.shape), self.heads)


@dataclass(frozen=True)
class GgufTensor(QuantizedTensor):
    """Blocks of a scale and 32 codes."""

    heads: int = 0

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        raw = read_raw(self, np.dtype(np.uint8), (*self.shape[:-1], -1))
        packed, scales = from_blocks(raw, self.format)
        check_finite(self, np.ascontiguousarray(scales).reshape(-1))
        return separated(packed, self.heads), separated(scales, self.heads)


@dataclass(frozen=True)
class GgufForeign(StoredTensor):
    """A tensor in a quantized type that only GGUF has; its dtype is `FOREIGN` and llama.cpp's name of the type."""

    heads: int = 0

    @property
    def raw(self) -> bool:
        return False

    def read(self) -> np.ndarray:
        """The values in float32, as the package gguf dequantizes them.

        Raises:
            RuntimeUnavailable: the package isn't installed, or is too old for the type.
            CheckpointError: the file is truncated, or holds values that aren't finite.
        """
        gguf = require_gguf()
        name = self.dtype.removeprefix(FOREIGN)
        blocks = read_raw(self, np.dtype(np.uint8), (*self.shape[:-1], -1))
        try:
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        except (KeyError, NotImplementedError) as e:  # MXFP4 in 0.17
            raise RuntimeUnavailable(
                f"the installed package gguf doesn't know {name}: pip install --upgrade gguf"
            ) from e
        values = values.astype(np.float32, copy=False).reshape(self.shape)
        check_finite(self, values.reshape(-1))
        return separated(values, self.heads)


def to_blocks(packed: np.ndarray, scales: np.ndarray, format: Format) -> np.ndarray:
    """GGUF's bytes `[rows, groups · block]` of packed codes and scales.

    Q4_0 keeps the first 16 codes of a block in the low halves of its bytes and the last 16 in the high ones; Q8_0 keeps
    code − 128 as a signed byte.
    """
    codes = unpack(packed, format).reshape(*scales.shape, GROUP)
    body = codes[..., :16] | (codes[..., 16:] << 4) if format.bits == 4 else codes ^ np.uint8(0x80)
    head = np.ascontiguousarray(scales).view(np.uint8).reshape(*scales.shape, 2)
    return np.concatenate([head, body], -1).reshape(*scales.shape[:-1], -1)


def from_blocks(raw: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `to_blocks`."""
    blocks = raw.reshape(*raw.shape[:-1], -1, 2 + GROUP * format.bits // 8)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    body = blocks[..., 2:]
    codes = np.concatenate([body & 15, body >> 4], -1) if format.bits == 4 else body ^ np.uint8(0x80)
    return pack(codes.reshape(*raw.shape[:-1], -1), format), scales


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows so that channels rotated together are adjacent: [heads, 2, d/2] -> [heads, d/2, 2]. heads = 0: unchanged."""
    if not heads:
        return x
    return np.ascontiguousarray(x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2)).reshape(x.shape)


def separated(x: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    if not heads:
        return x
    return np.ascontiguousarray(x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2)).reshape(x.shape)


_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_KNOWN_PREFIXES = ("general.", "tokenizer.", "split.", "quantize.imatrix.")


def parts_of(file: Path) -> list[Path]:
    """The files of a GGUF model, by its name: all parts of a split model (`NAME-00001-of-00003.gguf`), or the file itself."""
    found = _PART.fullmatch(file.name)
    if found is None:
        return [file]
    count = int(found["count"])
    return [file.with_name(f"{found['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]


DEQUANTIZED = (
    "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
    "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
"""Quantized types that the package gguf turns into float32."""


def _counted(types: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} tensors)" for name, count in sorted(types.items()))


class Reader:
    """The metadata and tensors of a file, or of all files of a split model. Keys are named without the architecture's prefix;
    the reader tracks which ones were not read.

    Raises:
        CheckpointError: not a GGUF file, a missing part of a split model, not a model (an adapter, a projector), or unsupported
            tensor types (all are named).
    """

    def __init__(self, file: Path):
        self.file, self._read = file, set()
        opened = read_gguf_header(file)
        count = opened.fields.get("split.count", 1)
        if type(count) is not int or count < 0:
            raise CheckpointError(f"{file}: split.count is {shown(count)}, which is not a number of files")
        self.files = parts_of(file) if count > 1 else [file]
        if len(self.files) != count:
            raise CheckpointError(
                f"{file} is one of the {count} files of a split GGUF model, but its name has no part number:"
                f" NAME-00001-of-{count:05d}.gguf is expected"
            )
        if missing := [f.name for f in self.files if not f.exists()]:
            raise CheckpointError(
                f"{file} is one of the {count} files of a split GGUF model; {', '.join(missing)} missing beside it"
            )
        self._headers = {f: opened if f == file else read_gguf_header(f) for f in self.files}
        self.fields = self._headers[self.files[0]].fields
        self.architecture = str(self.fields.get("general.architecture", ""))
        kind = self.fields.get("general.type", "model")
        if kind != "model":
            raise CheckpointError(
                f"{file} holds a GGUF {shown(kind)} (general.type), not a model; only models can be read"
            )
        self._tensors = {t.name: (t, f) for f, header in self._headers.items() for t in header.tensors.values()}
        told = self.fields.get("split.tensors.count")
        if told is not None and told != len(self._tensors):
            raise CheckpointError(
                f"{file}: its {count} files hold {len(self._tensors)} tensors, but its header declares {shown(told)}"
            )
        self.foreign: dict[str, int] = {}
        """Quantized type that only GGUF has -> how many tensors are of it."""
        others: dict[str, int] = {}
        for t, _ in self._tensors.values():
            if t.type not in (*TYPES, *BLOCKS):
                group = self.foreign if t.type in DEQUANTIZED else others
                group[t.type] = group.get(t.type, 0) + 1
        if others:
            known = ", ".join((*TYPES, *BLOCKS, *DEQUANTIZED))
            raise CheckpointError(f"{file} holds tensors of the types {_counted(others)}; edgeformer reads {known}")

    @property
    def notes(self) -> list[str]:
        """What a user should know about the weights."""
        if not self.foreign:
            return []
        return [
            f"{_counted(self.foreign)}: llama.cpp's own quantization, read as float32. No other format holds these bits: exports"
            " in fp32 have its values, q4 and q8 round them a second time"
        ]

    def below(self, prefix: str) -> dict[str, Any]:
        """All metadata under a prefix, by the rest of its key."""
        return {k.removeprefix(prefix): v for k, v in self.fields.items() if k.startswith(prefix)}

    def strangers(self) -> list[str]:
        """Keys that belong neither to the architecture nor to the metadata of every file."""
        known = (*_KNOWN_PREFIXES, f"{self.architecture}.")
        return sorted(k for k in self.fields if not k.startswith(known))

    def _value(self, key: str, default: object) -> object:
        self._read.add(key)
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise CheckpointError(f"{self.file}: required key {self.architecture}.{key} is missing")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer, required if there is no default."""
        value = self._value(key, default)
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            raise CheckpointError(
                f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must be an integer from 1 to {MAX_SIZE:,}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number. Files store float32: the shortest decimal that rounds to it (1e-05, not 9.99999974e-06)."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CheckpointError(
                f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must be a finite number"
            )
        return float(str(np.float32(value)))

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        if (value := self.number(key, default)) <= 0:
            raise CheckpointError(f"{self.file}: {self.architecture}.{key} is {value}; it must be positive")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must be a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must be true or false")
        return value

    def optional(self, key: str) -> int | None:
        """A positive integer; None where it is missing or 0."""
        self.ignore(key)
        return self.size(key) if self.fields.get(f"{self.architecture}.{key}") not in (None, 0) else None

    def token(self, key: str) -> int | None:
        """A token's id; None where it is missing."""
        self.ignore(key)
        value = self.fields.get(f"{self.architecture}.{key}")
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_SIZE):
            raise CheckpointError(f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must be a token's id")
        return value

    def sizes(self, key: str, count: int) -> list[int]:
        """A positive integer for each of `count` layers; one stands for all."""
        value = self._value(key, None)
        found = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * count
        found = [int(v) if isinstance(v, (int, np.integer)) and not isinstance(v, bool) else -1 for v in found]
        if len(found) != count or not all(0 < v <= MAX_SIZE for v in found):
            raise CheckpointError(
                f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must list a positive integer for each of"
                f" {count} layers"
            )
        return found

    def listed(self, key: str, default: int) -> int | list[bool]:
        """A positive integer, or a list of flags, one per layer."""
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, list):
            return self.size(key, default)
        self._read.add(key)
        if any(type(flag) not in (int, bool) or flag not in (0, 1) for flag in value):
            raise CheckpointError(
                f"{self.file}: {self.architecture}.{key} is {shown(value)}; it must list true or false"
            )
        return [bool(flag) for flag in value]

    def ignore(self, *keys: str) -> None:
        """Mark keys that are redundant as read."""
        self._read.update(keys)

    def unread(self) -> list[str]:
        """The architecture's keys that were not read."""
        prefix = self.architecture + "."
        return sorted(k for k in self.fields if k.startswith(prefix) and k.removeprefix(prefix) not in self._read)

    def has(self, tensor: str) -> bool:
        """Whether there is such a tensor."""
        return tensor in self._tensors

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape, outermost first."""
        if tensor not in self._tensors:
            raise CheckpointError(f"{self.file} has no tensor {tensor}")
        return self._tensors[tensor][0].shape

    def rows(self, table: str) -> int:
        """How many rows a matrix has."""
        shape = self.shape(table)
        if len(shape) != 2:
            raise CheckpointError(f"{self.file}: tensor {table} has shape {list(shape)}; it must be a matrix")
        return shape[0]

    def read(self, tensor: str) -> np.ndarray:
        """A tensor's values."""
        return self.tensor(tensor).read()

    def tensor(self, name: str, heads: int = 0) -> StoredTensor:
        """The location of a tensor."""
        (t, file), shape = self._tensors[name], self.shape(name)
        place, state = (name, file, t.offset, t.nbytes), self._headers[file].state
        format = BLOCKS.get(t.type)
        if format is not None and not self.foreign:
            return GgufTensor(*place, format.name.upper(), shape, format, heads, identity=state)
        if format is not None or t.type in DEQUANTIZED:  # beside K-quants, Q8_0 is no choice of ours to be carried on
            return GgufForeign(*place, FOREIGN + t.type, shape, heads, identity=state)
        return GgufPlain(*place, t.type, shape, heads, identity=state)

    def names(self) -> list[str]:
        """All tensors."""
        return list(self._tensors)


class Draft(Reader):
    """The reader of a file that is not written yet: its metadata, the shapes of its tensors, and some tensors' values."""

    def __init__(
        self,
        architecture: str,
        metadata: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, np.ndarray],
    ):
        self.file, self._read, self.files, self.foreign = Path("the GGUF file"), set(), [], {}
        self.architecture, self._shapes, self._values = (
            architecture,
            {**shapes, **{n: x.shape for n, x in values.items()}},
            values,
        )
        self.fields = {f"{architecture}.{key}": value for key, value in metadata.items()}

    def has(self, tensor: str) -> bool:
        return tensor in self._shapes

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._shapes[tensor]

    def read(self, tensor: str) -> np.ndarray:
        return self._values[tensor]
