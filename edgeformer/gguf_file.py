"""GGUF files, read lazily: metadata, and where each tensor lies. Q4_0 and Q8_0 are q4 and q8 in another order of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError, RuntimeUnavailable
from edgeformer.formats import GROUP, QUANTIZED, Format, QuantizedTensor, pack, unpack
from edgeformer.safetensors_file import DTYPES, StoredTensor, read_raw

TYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
BLOCKS = {"Q4_0": QUANTIZED["q4"], "Q8_0": QUANTIZED["q8"]}


def _scheme(types: Iterable[str]) -> str:
    """What llama.cpp calls a kind of quantization."""
    kinds = {
        "K-quants"
        if name.endswith("_K")
        else "I-quants"
        if name.startswith("IQ")
        else "MXFP4"
        if name == "MXFP4"
        else name
        for name in types
    }
    return " and ".join(sorted(kinds))


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
    """A tensor that isn't quantized. `heads`: of how many heads its rows are in llama.cpp's order of rotated channels."""

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
        return separated(packed, self.heads), separated(scales, self.heads)


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
    """Rows so that channels rotated together are neighbours: [heads, 2, d/2] -> [heads, d/2, 2]. heads = 0 changes nothing."""
    if not heads:
        return x
    return np.ascontiguousarray(x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2)).reshape(x.shape)


def separated(x: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    if not heads:
        return x
    return np.ascontiguousarray(x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2)).reshape(x.shape)


_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_KNOWN_PREFIXES = ("general.", "tokenizer.", "split.", "quantize.imatrix.", "GGUF.")


def parts_of(file: Path) -> list[Path]:
    """The files of a GGUF model as its name tells them: all parts of a split one (`NAME-00001-of-00003.gguf`), or itself."""
    found = _PART.fullmatch(file.name)
    if found is None:
        return [file]
    count = int(found["count"])
    return [file.with_name(f"{found['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]


class Reader:
    """The metadata and tensors of a file, or of all files of a split one. Keys are named without the architecture's prefix; those
    that nobody read are known.

    Raises:
        CheckpointError: no GGUF file, a part of a split one that is missing, no model (an adapter, a projector), or tensor types
            that can't be read (all are named).
    """

    def __init__(self, file: Path):
        gguf = require_gguf()
        self.file, self._read = file, set()
        opened = self._open(gguf, file)
        count = opened.fields["split.count"].contents() if "split.count" in opened.fields else 1
        self.files = parts_of(file) if count > 1 else [file]
        if len(self.files) != count:
            raise CheckpointError(
                f"{file} is one of the {count} files of a split GGUF model, and its name says no number:"
                f" NAME-00001-of-{count:05d}.gguf is expected"
            )
        if missing := [f.name for f in self.files if not f.exists()]:
            raise CheckpointError(
                f"{file} is one of the {count} files of a split GGUF model; {', '.join(missing)} missing beside it"
            )
        readers = {f: opened if f == file else self._open(gguf, f) for f in self.files}
        first = readers[self.files[0]]
        self.fields = {name: field for name, field in first.fields.items() if not name.startswith("GGUF.")}
        self.architecture = (
            str(self.fields["general.architecture"].contents()) if "general.architecture" in self.fields else ""
        )
        kind = self.fields["general.type"].contents() if "general.type" in self.fields else "model"
        if kind != "model":
            raise CheckpointError(f"{file} holds no model but a GGUF {kind!r} (general.type), which can't be read")
        self._tensors = {t.name: (t, f) for f, reader in readers.items() for t in reader.tensors}
        told = self.fields["split.tensors.count"].contents() if "split.tensors.count" in self.fields else None
        if told is not None and told != len(self._tensors):
            raise CheckpointError(
                f"{file}: its {count} files hold {len(self._tensors)} tensors, and it tells of {told}"
            )
        known = (*TYPES, *BLOCKS)
        others: dict[str, int] = {}
        for t, _ in self._tensors.values():
            if t.tensor_type.name not in known:
                others[t.tensor_type.name] = others.get(t.tensor_type.name, 0) + 1
        if others:
            listed = ", ".join(f"{name} ({count} tensors)" for name, count in sorted(others.items()))
            scheme = _scheme(others)
            raise CheckpointError(
                f"{file} is quantized in llama.cpp's {scheme}: {listed}. edgeformer reads {', '.join(known)}, whose groups every"
                " runtime holds exactly; convert the original model instead"
            )

    def _open(self, gguf: Any, file: Path) -> Any:
        try:
            return gguf.GGUFReader(str(file))
        except Exception as e:  # the package raises several kinds for damaged files
            raise CheckpointError(f"{file} can't be read as a GGUF file: {e}") from e

    def below(self, prefix: str) -> dict[str, Any]:
        """All metadata below a prefix, by the rest of its key."""
        return {k.removeprefix(prefix): f.contents() for k, f in self.fields.items() if k.startswith(prefix)}

    def strangers(self) -> list[str]:
        """Keys that belong neither to the architecture nor to what every file has."""
        known = (*_KNOWN_PREFIXES, f"{self.architecture}.")
        return sorted(k for k in self.fields if not k.startswith(known))

    def _value(self, key: str, default: Any) -> Any:
        self._read.add(key)
        field = self.fields.get(f"{self.architecture}.{key}")
        if field is None:
            if default is None:
                raise CheckpointError(f"{self.file} says no {self.architecture}.{key}")
            return default
        return field.contents()

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number; the file must say it if there is no default."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.file}: {self.architecture}.{key} is {value!r}, one whole number is supported")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number. Stored in float32: the shortest decimal that float32 reads so (1e-05, not 9.99999974e-06)."""
        return float(str(np.float32(self._value(key, default))))

    def text(self, key: str, default: str) -> str:
        """A string."""
        return str(self._value(key, default))

    def ignore(self, *keys: str) -> None:
        """Keys that say nothing new."""
        self._read.update(keys)

    def unread(self) -> list[str]:
        """The architecture's keys that nobody has read."""
        prefix = self.architecture + "."
        return sorted(k for k in self.fields if k.startswith(prefix) and k.removeprefix(prefix) not in self._read)

    def has(self, tensor: str) -> bool:
        """Whether there is such a tensor."""
        return tensor in self._tensors

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape, outermost first."""
        if tensor not in self._tensors:
            raise CheckpointError(f"{self.file} has no tensor {tensor}")
        return tuple(int(n) for n in reversed(self._tensors[tensor][0].shape))

    def read(self, tensor: str) -> np.ndarray:
        """A tensor's values."""
        return self.tensor(tensor).read()

    def tensor(self, name: str, heads: int = 0) -> StoredTensor:
        """Where a tensor lies."""
        (t, file), shape = self._tensors[name], self.shape(name)
        place = (name, file, int(t.data_offset), int(t.n_bytes))
        if (format := BLOCKS.get(t.tensor_type.name)) is not None:
            return GgufTensor(*place, format.name.upper(), shape, format, heads)
        return GgufPlain(*place, TYPES[t.tensor_type.name], shape, heads)

    def names(self) -> list[str]:
        """All tensors."""
        return list(self._tensors)
