"""Read safetensors files lazily: the header locates each tensor, and no tensor is read before it is needed.

The official package decides whether a file is a safetensors file: it opens every file, and what it refuses (overlaps, holes,
trailing bytes, numbers that are not integers) is refused. It does not expose the offsets, which let an ONNX file point into a
checkpoint. Format: eight bytes of little-endian header length, a JSON header, then the data
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.json_file import MAX_LISTING_BYTES, read_json_file
from edgeformer.files.limits import MAX_DIMENSIONS
from edgeformer.files.paths import check_regular, inside

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The storage types that weights may have, by their safetensors name."""

MAX_HEADER = 25_000_000
"""Limit of a header in bytes, about 200,000 tensors. The format allows 100 MB, which take gigabytes to read; known ones have up
to 14 MB."""

Identity = tuple[int, int, int, int]
"""Distinguishes one state of a file from another: device, inode, size, and modification time in ns."""


def identity(status: os.stat_result) -> Identity:
    """The identity of a file, by its status."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor: `nbytes` bytes at `offset` of `file`, row-major, of safetensors type `dtype`."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    identity: Identity | None = field(default=None, kw_only=True)
    """The state of `file` that offset and shape were read from; None where nothing is read from it."""
    allow_nonfinite: bool = field(default=False, kw_only=True)
    """Whether NaN and infinities are accepted; otherwise they are refused when they are read."""

    @property
    def raw(self) -> bool:
        """Whether its bytes in the file are its values, row by row, so that they can be copied or linked without being read."""
        return self.dtype in DTYPES

    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that make up this one: itself, unless it is quantized."""
        return (self,)

    def open(self) -> BinaryIO:
        """Open its file, which must be in the state in which its header was read.

        Raises:
            CheckpointError: the file was replaced or written to since, or can't be read.
        """
        try:
            f = self.file.open("rb")
        except OSError as e:
            raise CheckpointError(f"can't read {self.file}: {e.strerror}") from e
        if self.identity not in (None, identity(os.fstat(f.fileno()))):
            f.close()
            raise CheckpointError(
                f"{self.file} changed while it was read: tensor {self.name} would come from another version. Run the command"
                " again"
            )
        return f

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` where the file is no longer the one that the header was read from."""
        if self.identity is not None:
            self.open().close()

    def read(self) -> np.ndarray:
        """The tensor, in its stored type.

        Raises:
            CheckpointError: the type is not a weight's (integers of a quantized checkpoint), or the file is truncated.
        """
        if self.dtype not in DTYPES:
            raise CheckpointError(
                f"{self.file}: tensor {self.name} has type {self.dtype}; weights must be {', '.join(DTYPES)}."
                " A quantized checkpoint must be dequantized first"
            )
        return read_raw(self, DTYPES[self.dtype], self.shape)


def _elements(shape: tuple[int, ...], most: int) -> int:
    """The product of the sizes, or some number above `most`: the whole product of many large ones takes minutes."""
    if 0 in shape:
        return 0
    made = 1
    for size in shape:
        made *= size
        if made > most:
            break
    return made


def read_raw(tensor: StoredTensor, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's bytes as an array of a type and shape.

    Raises:
        CheckpointError: the file is truncated, or the tensor has more dimensions than numpy's arrays.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has {len(shape):,} dimensions; at most {MAX_DIMENSIONS} are supported"
        )
    with tensor.open() as f:
        data = np.fromfile(f, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
    if data.nbytes != tensor.nbytes:
        raise CheckpointError(f"{tensor.file} is truncated in tensor {tensor.name}; get the file again")
    found = data.view(dtype)
    check_finite(tensor, found)
    return found.reshape(shape)


_EXPONENTS = {DTYPES["F32"]: 0x7F800000, DTYPES["F16"]: 0x7C00, DTYPES["BF16"]: 0x7F80}
"""The bits that are all set in NaN and infinities."""
_PIECE = 1 << 18


def check_finite(tensor: StoredTensor, values: np.ndarray, start: int = 0) -> None:
    """Refuse NaN and infinities in (a part of) a tensor, unless it allows them.

    Compares exponents as integers, in pieces that stay in the processor's cache: some gigabytes per second.

    Args:
        tensor: the tensor, for its name and whether it allows them.
        values: its values, flat; types without infinities are not checked.
        start: the index of the first.

    Raises:
        CheckpointError: there is one; the message names the tensor and the first such value.
    """
    mask = _EXPONENTS.get(values.dtype)
    if mask is None or tensor.allow_nonfinite:
        return
    bits = values.view(np.uint32 if values.dtype.itemsize == 4 else np.uint16)
    for at in range(0, len(bits), _PIECE):
        piece = bits[at : at + _PIECE] & mask
        if piece.max() == mask:
            where = at + int((piece == mask).argmax())
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} holds {float(values[where])} (value {start + where:,}); weights must be"
                " finite: training diverged, or the file is damaged. --allow-nonfinite accepts such values"
            )


def read_metadata(file: Path) -> dict[str, str]:
    """The `__metadata__` of a file, such as `{"format": "mlx"}`; empty where there is none.

    Raises:
        CheckpointError: as `read_header`.
    """
    return _read(file)[1]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Raises:
        CheckpointError: the file is truncated or, according to the official package, not a safetensors file, or its header has
            more than 25 MB or names a tensor twice.
    """
    return _read(file)[0]


def _read(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    check_regular(file, CheckpointError)
    try:
        with file.open("rb") as f:
            state = identity(os.fstat(f.fileno()))
            start = f.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 0 <= length <= state[2] - 8:
                raise CheckpointError(
                    f"{file} ({state[2]} bytes) is truncated or not a safetensors file: its first 8 bytes declare a header"
                    f" of {max(length, 0)} bytes. Get the file again"
                )
            if length > MAX_HEADER:
                raise CheckpointError(f"{file} has a header of {length:,} bytes; at most {MAX_HEADER:,} are supported")
            text = f.read(length)
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    try:
        header = json.loads(text, object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: _entry(file, name, entry, 8 + length, state) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{file} is corrupt: its safetensors header can't be read ({str(e)[:200]})") from e
    if cut := [t.name for t in tensors.values() if t.offset + t.nbytes > state[2]]:
        end = max(t.offset + t.nbytes for t in tensors.values())
        raise CheckpointError(
            f"{file} is truncated: {len(cut)} of {len(tensors)} tensors (first {cut[0]}) lie beyond its {state[2]} bytes,"
            f" {end} are needed. Get the file again"
        )
    _check_officially(file)
    return tensors, metadata


def _check_officially(file: Path) -> None:
    """Refuse what the package `safetensors` refuses."""
    from safetensors import safe_open

    try:
        with safe_open(str(file), framework="numpy"):
            pass
    except Exception as e:  # SafetensorError and OSError
        reason = str(e).removeprefix("Error while deserializing header: ")[:200]
        raise CheckpointError(
            f"{file} is corrupt according to the package safetensors: {reason}. Get the file again"
        ) from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without duplicate keys: of a name that occurs twice, some readers take the first, others the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"{next(k for k in found if names.count(k) > 1)!r} occurs twice")
    return found


def _entry(file: Path, name: str, entry: dict, data: int, state: Identity) -> StoredTensor:
    if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):
        raise TypeError(f"tensor {name!r} is not an object with dtype, shape and data_offsets")
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise ValueError(f"tensor {name} has invalid offsets {begin!r}..{end!r}")
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not 0 <= begin <= end or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"tensor {name} has invalid offsets {begin}..{end} or shape {shape}")
    if dtype in DTYPES and end - begin != _elements(shape, end) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {name} of shape {shape} and type {dtype} can't take {end - begin} bytes")
    return StoredTensor(name, file, data + begin, end - begin, dtype, shape, identity=state)


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, following the index of a sharded one.

    Raises:
        CheckpointError: no weights, only `.bin` weights (the message says how to convert), or missing shards.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():  # it takes precedence over an index, as in transformers
        return [single]
    if index.exists():
        return shards(index)
    if files := sorted(folder.glob("*.safetensors")):
        return files
    if bins := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise CheckpointError(
            f"{folder} holds its weights as {bins[0].name}, a pickle that can run code; edgeformer reads safetensors only."
            f" Convert it once: edgeformer convert {folder} -o {folder}-safetensors"
        )
    raise CheckpointError(f"{folder} holds no *.safetensors file")


def shards(index: Path) -> list[Path]:
    """The files that the index of a sharded checkpoint names, each in its folder.

    Raises:
        CheckpointError: it is not an index, names files outside its folder, or files are missing.
    """
    data = read_json_file(index, CheckpointError, limit=MAX_LISTING_BYTES)
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index} is not a shard index: it has no weight_map of file names")
    files = [inside(index.parent, n, str(index), CheckpointError) for n in sorted(set(names.values()))]
    if missing := [f.name for f in files if not f.exists()]:
        listed = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        raise CheckpointError(f"{index.parent}: {len(missing)} of {len(files)} shards are missing: {listed}")
    return files


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder, by its stored name."""
    tensors: dict[str, StoredTensor] = {}
    for file in checkpoint_files(folder):
        found = read_header(file)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(f"{folder}: {file.name} holds {min(twice)}, which another file holds, too")
        tensors |= found
    return tensors
