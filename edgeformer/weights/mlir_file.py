"""The weights of a Core AI asset, read from its MLIR bytecode without any library: named blobs of the resource sections.

The encoding is MLIR's (https://mlir.llvm.org/docs/BytecodeFormat/): sections of strings, of resource sizes and of resources. The
export names a blob `NAME:TYPE:SHAPE`, the codes of a quantized weight `NAME:Q4:SHAPE` with `NAME.scales:TYPE:SHAPE` beside them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

from edgeformer.errors import CheckpointError
from edgeformer.files.paths import check_regular
from edgeformer.files.quoting import plain
from edgeformer.weights.formats import GROUP, QUANTIZED, SCALES, GroupTensor
from edgeformer.weights.safetensors_file import DTYPES, StoredTensor, identity

MAGIC = b"ML\xefR"
_STRINGS, _RESOURCES, _SIZES = 0, 5, 6
_ALIGNED = 0x80
_MOST, _SECTIONS, _DIMENSIONS, _PRODUCER = 10_000_000, 64, 8, 4096
"""Limits: strings, and resources, of a file; its sections; dimensions of a weight; bytes of the writer's name."""


def blob_name(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """What the export calls a weight's blob."""
    return f"{name}:{dtype}:{'x'.join(map(str, shape))}"


class _Reader:
    """Reads numbers and bytes; never beyond `end`."""

    def __init__(self, data: mmap.mmap, start: int, end: int):
        self.data, self.at, self.end = data, start, end

    def byte(self) -> int:
        """The next byte."""
        if self.at >= self.end:
            raise ValueError("a section is cut off")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """A prefix varint: the zeros below the lowest set bit of the first byte count the bytes that follow it."""
        first = self.byte()
        if first == 0:
            return int.from_bytes(self.skip(8), "little")
        more = (first & -first).bit_length() - 1
        whole = first | int.from_bytes(self.skip(more), "little") << 8
        return whole >> (more + 1)

    def count(self) -> int:
        """A number of items that follow, a byte each at least."""
        made = self.number()
        if made > min(self.end - self.at, _MOST):
            raise ValueError("a section declares more than it holds")
        return made

    def skip(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.end - self.at:
            raise ValueError("a section is cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def align(self, alignment: int) -> None:
        """Go to the next multiple of `alignment` in the file."""
        if alignment <= 0 or alignment & (alignment - 1):
            raise ValueError("an alignment is no power of two")
        self.at += -self.at % alignment
        if self.at > self.end:
            raise ValueError("a section is cut off")


def read_blobs(file: Path) -> dict[str, tuple[int, int]]:
    """Blob name -> offset and size in bytes, of all blobs in a file of MLIR bytecode.

    Raises:
        CheckpointError: it is no such file, or damaged.
    """
    if check_regular(file, CheckpointError).st_size == 0:
        raise CheckpointError(f"{file} is empty")
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found: dict[str, tuple[int, int]] = {}
            for name, place in _blobs(data):
                if name in found:
                    raise ValueError(f"the blob {name[:80]!r} occurs twice")
                found[name] = place
            return found
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    except (ValueError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{file} is no readable MLIR bytecode: {e}") from e


def _blobs(data: mmap.mmap) -> Iterator[tuple[str, tuple[int, int]]]:
    reader = _Reader(data, 0, len(data))
    if len(data) < 6 or reader.skip(4) != MAGIC:
        raise ValueError("it doesn't begin with MLIR's signature")
    reader.number()  # the version
    if (end := data.find(b"\0", reader.at, reader.at + _PRODUCER)) < 0:
        raise ValueError("the writer's name has no end")
    reader.at = end + 1
    places: dict[int, tuple[int, int]] = {}
    sections = 0
    while reader.at < len(data):
        if (sections := sections + 1) > _SECTIONS:
            raise ValueError(f"it has more than {_SECTIONS} sections")
        kind, size = reader.byte(), reader.number()
        if kind & _ALIGNED:
            reader.align(reader.number())
        if size > reader.end - reader.at:
            raise ValueError("a section is cut off")
        places.setdefault(kind & ~_ALIGNED, (reader.at, reader.at + size))
        reader.at += size
    if not {_STRINGS, _RESOURCES, _SIZES} <= places.keys():
        return
    strings = _strings(_Reader(data, *places[_STRINGS]))
    resources = _Reader(data, *places[_RESOURCES])
    for name, size, kind in _listed(_Reader(data, *places[_SIZES]), strings):
        end = resources.at + size
        if end > resources.end:
            raise ValueError("a resource is cut off")
        if kind == 0:
            blob = _Reader(data, resources.at, end)
            alignment, length = blob.number(), blob.number()
            blob.align(alignment)
            if length > end - blob.at:
                raise ValueError("a resource is cut off")
            yield name, (blob.at, length)
        resources.at = end


def _strings(reader: _Reader) -> list[str]:
    """All strings; their lengths come first, the last string's first."""
    sizes = [reader.number() for _ in range(reader.count())]
    return [reader.skip(size)[:-1].decode() for size in reversed(sizes)]


def _listed(reader: _Reader, strings: list[str]) -> Iterator[tuple[str, int, int]]:
    """Name, size and kind of each resource: first those of external groups, then those of dialects."""
    external = reader.count()
    group = listed = 0
    while reader.at < reader.end:
        reader.number()  # the group's name, or the dialect's number
        for _ in range(reader.count()):
            if (listed := listed + 1) > _MOST:
                raise ValueError(f"it has more than {_MOST:,} resources")
            key, size, kind = reader.number(), reader.number(), reader.byte()
            if key >= len(strings):
                raise ValueError("a resource has no name")
            yield strings[key], size, kind
        group += 1
    if group < external:
        raise ValueError("a section is cut off")


def read_asset(folder: Path) -> dict[str, StoredTensor]:
    """The weights of `NAME.aimodel` by canonical name, with codes and scales of quantized ones joined.

    Raises:
        CheckpointError: its bytecode is missing or damaged, or a blob has another size than its name says.
    """
    file = folder / "main.mlirb"
    state = identity(check_regular(file, CheckpointError))
    plainly: dict[str, StoredTensor] = {}
    for label, (offset, length) in read_blobs(file).items():
        parts = label.rsplit(":", 2)
        if len(parts) != 3 or parts[1] not in _BITS:
            continue  # a constant that is no weight
        name, dtype, sizes = parts
        numbers = sizes.split("x", _DIMENSIONS)
        if len(numbers) > _DIMENSIONS or not all(n.isascii() and n.isdecimal() and len(n) < 12 for n in numbers):
            raise CheckpointError(f"{file}: the blob {plain(label, limit=80)} has no valid shape")
        shape = tuple(map(int, numbers))
        if math.prod(shape) * _BITS[dtype] != length * 8:
            raise CheckpointError(f"{file}: the blob {plain(label, limit=80)} has {length} bytes")
        plainly[name] = StoredTensor(name, file, offset, length, dtype, shape, identity=state)
    made = dict(plainly)
    for name, held in plainly.items():
        if (format := QUANTIZED.get(held.dtype.lower())) is None:
            continue
        scales = made.pop(name + SCALES, None)
        fit = held.shape[-1] % GROUP == 0 and scales is not None and scales.shape == format.scales_shape(held.shape)
        if scales is None or not fit or scales.dtype not in ("F16", "F32"):
            raise CheckpointError(f"{file}: {plain(name, limit=80)} has no scales that fit its codes")
        fields = (name, file, held.offset, held.nbytes, format.name.upper(), held.shape, format, scales, True)
        made[name] = GroupTensor(*fields, identity=state)
    return made


_BITS = {
    **{name: kind.itemsize * 8 for name, kind in DTYPES.items()},
    **{f.name.upper(): f.bits for f in QUANTIZED.values()},
}
"""Types in the names of blobs -> bits per weight."""
