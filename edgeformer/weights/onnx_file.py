"""The weights of an ONNX file as stored tensors: what an exported artefact holds, read back from the file itself."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeformer.errors import ArtefactError, CheckpointError
from edgeformer.files.limits import MAX_DIMENSIONS
from edgeformer.files.paths import check_regular, inside
from edgeformer.files.quoting import plain
from edgeformer.weights.formats import QUANTIZED, SCALES, GroupTensor, join
from edgeformer.weights.safetensors_file import StoredTensor, identity

if TYPE_CHECKING:
    import onnx

_TYPES = {1: "F32", 2: "U8", 3: "I8", 10: "F16", 16: "BF16", 22: "I4"}
"""onnx.TensorProto's numbers -> safetensors names; I4 (two codes per byte) is ONNX's own."""
_BITS = {"F32": 32, "U8": 8, "I8": 8, "F16": 16, "BF16": 16, "I4": 4}


def read_initializers(file: Path, *, linked: Mapping[str, Path] | None = None) -> dict[str, StoredTensor]:
    """Every tensor with external data, by name, with codes and scales of quantized ones joined.

    Args:
        file: the ONNX file.
        linked: location -> path of files that lie elsewhere.

    Raises:
        CheckpointError: the file is not an ONNX model, or its data is missing, too short or outside the folder.
    """
    import onnx

    check_regular(file, CheckpointError)
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as e:  # protobuf has errors of its own
        raise CheckpointError(f"{file} can't be read as an ONNX model: {e}") from e
    _check_officially(file, model)
    found: dict[str, StoredTensor] = {}
    places: dict[str, Path] = {name: path for name, path in (linked or {}).items() if path}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        texts = [tensor.name, *(text for e in tensor.external_data for text in (e.key, e.value))]
        if not all(isinstance(text, str) for text in texts):  # protobuf returns bytes that are not UTF-8
            raise CheckpointError(f"{file}: a tensor's name or location is not UTF-8")
        if held := [f.name for f, _ in tensor.ListFields() if f.name.endswith("_data") and f.name != "external_data"]:
            raise CheckpointError(f"{file}: tensor {tensor.name[:80]!r} has external data and also holds {held[0]}")
        entry = {e.key: e.value for e in tensor.external_data}
        if tensor.data_type not in _TYPES:
            if tensor.data_type not in onnx.TensorProto.DataType.values() or not tensor.data_type:
                raise CheckpointError(f"{file}: tensor {tensor.name[:80]!r} has the invalid type {tensor.data_type}")
            continue
        if "location" not in entry or len(entry) != len(tensor.external_data):
            raise CheckpointError(f"{file}: tensor {tensor.name[:80]!r} must name exactly one external file")
        says, shape, dtype = f"{file}: tensor {tensor.name[:80]!r}", tuple(tensor.dims), _TYPES[tensor.data_type]
        if (location := entry["location"]) not in places:
            places[location] = inside(file.parent, location, says, CheckpointError)
        data = places[location]
        if len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(f"{says} has {len(shape):,} dimensions; at most {MAX_DIMENSIONS} are supported")
        if any(n < 0 for n in shape):
            raise CheckpointError(f"{says} has the invalid shape {list(shape)[:8]}")
        needed = -(-math.prod(shape) * _BITS[dtype] // 8)
        offset, length = _place(entry, "offset", 0, says), _place(entry, "length", needed, says)
        status = check_regular(data, CheckpointError)
        size = status.st_size
        if length != needed or offset + length > size:
            raise CheckpointError(
                f"{says} needs {needed} bytes, but is given {length} at {offset} of {data}, which has {size}"
            )
        found[tensor.name] = StoredTensor(tensor.name, data, offset, length, dtype, shape, identity=identity(status))
    return join(_as_rows(found), str(file))


def _check_officially(file: Path, model: onnx.ModelProto) -> None:
    """Refuse what onnx.checker refuses. Tensors with external data are passed to it as inputs: their location is checked here,
    and it refuses files with several hard links, which edgeformer's own artefacts have."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(inside)
    try:
        known = {x.name for x in bare.graph.input}
        for t in outside:
            if t.name not in known:
                bare.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
        onnx.checker.check_model(bare)
    except Exception as e:  # ValidationError, and protobuf's own
        why = plain(str(e).strip().split("\n")[0], limit=300)
        raise CheckpointError(f"{file} is not a valid ONNX model according to onnx.checker: {why}") from e


def _place(entry: Mapping[str, str], key: str, default: int, says: str) -> int:
    """A number of an external tensor's entry, which ONNX stores as text."""
    text = entry.get(key, str(default))
    if not text.isdecimal() or len(text) > 18:
        raise CheckpointError(f"{says}: {key} of its external data is {text[:40]!r}, not an integer")
    return int(text)


def _as_rows(found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Codes as rows of bytes, however the graph declares them; signed ones (DequantizeLinear's) become a `GroupTensor` here."""
    out = dict(found)
    for name, scales in found.items():
        if not name.endswith(SCALES) or (codes := found.get(base := name.removesuffix(SCALES))) is None:
            continue
        if codes.dtype in ("I4", "I8"):
            format = QUANTIZED["q4" if codes.dtype == "I4" else "q8"]
            kind = format.name.upper()
            fields = (base, codes.file, codes.offset, codes.nbytes, kind, codes.shape, format, scales, True)
            out[base] = GroupTensor(*fields, identity=codes.identity)
            del out[name]
        else:
            rows = scales.shape[:-1]  # MatMulNBits and QMoE declare codes by block
            count, each = math.prod(rows), math.prod(codes.shape)
            if count and each % count == 0:  # otherwise they don't fit each other, which `join` says
                out[base] = replace(codes, shape=(*rows, each // count))
    return out


_TENSORS = {"model": {7: "graph", 20: "training", 25: "function"}, "training": {1: "graph", 2: "graph"},
            "graph": {1: "node", 5: "tensor", 15: "sparse"}, "function": {7: "node", 11: "attribute"}, "node": {5: "attribute"},
            "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
            "sparse": {1: "tensor", 2: "tensor"}, "tensor": {13: "entry"}}  # fmt: skip
"""Message -> field number -> message, of onnx.proto: every path from a model to the external data of a tensor."""
_NESTED = 200


def locations(file: Path) -> set[str]:
    """Every external data file that an ONNX model names, wherever in the model the tensor is.

    Read from the encoded bytes (https://protobuf.dev/programming-guides/encoding): no tensor's own bytes are read, and nothing is
    imported, so that a runtime's measured memory is its own.

    Raises:
        ArtefactError: it is not an ONNX file, or truncated.
    """
    if check_regular(file, ArtefactError).st_size == 0:
        raise ArtefactError(f"{file} is empty")
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return set(_entries(data, 0, len(data), "model", 0))
    except OSError as e:
        raise ArtefactError(f"can't read {file}: {e.strerror}") from e
    except (ValueError, IndexError) as e:
        raise ArtefactError(f"{file} can't be read as an ONNX model: {e}") from e


def check_locations(file: Path, linked: Mapping[str, Path]) -> None:
    """Refuse an ONNX file with external data outside its folder, except in files that were linked on purpose.

    Raises:
        ArtefactError: there is such data; the message names the location.
    """
    for location in locations(file):
        if location not in linked:
            inside(file.parent, location, f"external data of {file}", ArtefactError)


def _entries(data: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _NESTED:
        raise ValueError(f"its graphs are nested deeper than {_NESTED} levels")
    fields = _TENSORS[message]
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field extends beyond its message")
            if (below := fields.get(number)) == "entry":
                if (location := _location(data, at, at + length)) is not None:
                    yield location
            elif below is not None:
                yield from _entries(data, at, at + length, below, depth + 1)
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the invalid wire type {kind}")
    if at != end:
        raise ValueError("a field extends beyond its message")


def _location(data: mmap.mmap, at: int, end: int) -> str | None:
    """The value of an entry of external data whose key is `location`."""
    found = {1: b"", 2: b""}
    while at < end:
        tag, at = _varint(data, at)
        if tag & 7 != 2:
            raise ValueError("an entry of external data is not a string")
        length, at = _varint(data, at)
        if at + length > end:
            raise ValueError("a field extends beyond its message")
        found[tag >> 3] = data[at : at + length]
        at += length
    return found[2].decode("utf-8") if found[1] == b"location" else None


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


__all__ = ["check_locations", "locations", "read_initializers"]
