"""Safetensors files, read lazily: the header tells where each tensor lies, and no tensor is read before it is needed.

The offsets are what the official package does not give, and what lets an ONNX file point into a checkpoint. Format:
eight bytes of little-endian header length, a JSON header, then the data.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.json_file import MAX_LISTING_BYTES, read_json_file
from edgeformer.paths import inside

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The storage types that weights may have, by their safetensors name."""

_ITEM_SIZES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100_000_000  # the limit of the format


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `nbytes` bytes at `offset` of `file`, row-major, of safetensors type `dtype`."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def raw(self) -> bool:
        """Whether its bytes in the file are its values, row by row: what may be copied or pointed at without reading it."""
        return self.dtype in DTYPES

    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensors of the file that make this one up: itself, unless it is quantized."""
        return (self,)

    def read(self) -> np.ndarray:
        """The tensor, in its stored type.

        Raises:
            CheckpointError: a type that is no weight's (integers of a quantized checkpoint), or a file cut short.
        """
        if self.dtype not in DTYPES:
            raise CheckpointError(
                f"{self.file}: tensor {self.name} has type {self.dtype}; weights must be {', '.join(DTYPES)}."
                " A quantized checkpoint has to be dequantized first"
            )
        return read_raw(self, DTYPES[self.dtype], self.shape)


def read_raw(tensor: StoredTensor, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's bytes as an array of a type and shape.

    Raises:
        CheckpointError: a file cut short.
    """
    with tensor.file.open("rb") as f:
        data = np.fromfile(f, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
    if data.nbytes != tensor.nbytes:
        raise CheckpointError(f"{tensor.file}: cut short while reading tensor {tensor.name}; get the file again")
    return data.view(dtype).reshape(shape)


def read_metadata(file: Path) -> dict[str, str]:
    """What a file says about itself (`__metadata__`), such as `{"format": "mlx"}`; empty where there is nothing."""
    with file.open("rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    return header.get("__metadata__") or {}


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Raises:
        CheckpointError: the file is truncated or no safetensors file; the message says at which byte.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            start = f.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, max(size - 8, 0)):
                raise CheckpointError(
                    f"{file} ({size} bytes) is truncated or no safetensors file: its first 8 bytes announce a header"
                    f" of {length} bytes. Get the file again"
                )
            header = json.loads(f.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
        header.pop("__metadata__", None)
        tensors = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{file} is corrupt: its safetensors header can't be read ({e})") from e
    end = max((t.offset + t.nbytes for t in tensors.values()), default=0)
    if end > size:
        cut = [t.name for t in tensors.values() if t.offset + t.nbytes > size]
        raise CheckpointError(
            f"{file} is truncated: {len(cut)} of {len(tensors)} tensors (first {cut[0]}) lie beyond its {size} bytes,"
            f" {end} are needed. Get the file again"
        )
    return tensors


def _entry(file: Path, name: str, entry: dict, data: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not 0 <= begin <= end or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"tensor {name} has offsets {begin}..{end} and shape {shape}")
    item = DTYPES[dtype].itemsize if dtype in DTYPES else _ITEM_SIZES.get(dtype)
    if item is not None and end - begin != math.prod(shape) * item:
        raise ValueError(f"tensor {name} of shape {shape} and type {dtype} can't take {end - begin} bytes")
    return StoredTensor(name, file, data + begin, end - begin, dtype, shape)


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, following the index of a sharded one.

    Raises:
        CheckpointError: no weights, only `.bin` weights (the message says how to convert), or missing shards.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():  # it wins over an index, as in transformers
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
        CheckpointError: it is no index, names files outside of its folder, or files are missing.
    """
    data = read_json_file(index, CheckpointError, limit=MAX_LISTING_BYTES)
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index} is no index of shards: it has no weight_map of file names")
    files = [inside(index.parent, n, str(index), CheckpointError) for n in sorted(set(names.values()))]
    if missing := [f.name for f in files if not f.exists()]:
        listed = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        raise CheckpointError(f"{index.parent}: {len(missing)} of {len(files)} shards are missing: {listed}")
    return files


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder, by its stored name."""
    tensors: dict[str, StoredTensor] = {}
    for file in checkpoint_files(folder):
        tensors |= read_header(file)
    return tensors
