"""The weights of an ONNX file as stored tensors: what an exported artefact holds, read back from the file itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from edgeformer.errors import CheckpointError
from edgeformer.formats import QUANTIZED, SCALES, GroupTensor, join
from edgeformer.safetensors_file import StoredTensor

_TYPES = {1: "F32", 2: "U8", 3: "I8", 10: "F16", 16: "BF16", 22: "I4"}
"""onnx.TensorProto's numbers -> safetensors names; I4 (two codes a byte) is ONNX's own."""
_BITS = {"F32": 32, "U8": 8, "I8": 8, "F16": 16, "BF16": 16, "I4": 4}


def read_initializers(file: Path, *, linked: dict[str, str] | None = None) -> dict[str, StoredTensor]:
    """Every tensor that lies in a file beside `model.onnx`, by name, quantized ones put together.

    Args:
        file: the ONNX file.
        linked: location -> path of files that lie elsewhere.

    Raises:
        CheckpointError: the file is no ONNX model, or its data is missing.
    """
    import onnx

    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as e:  # protobuf has errors of its own
        raise CheckpointError(f"{file} can't be read as an ONNX model: {e}") from e
    found: dict[str, StoredTensor] = {}
    for tensor in model.graph.initializer:
        entry = {e.key: e.value for e in tensor.external_data}
        if "location" not in entry or tensor.data_type not in _TYPES:
            continue
        data = Path((linked or {}).get(entry["location"], file.parent / entry["location"]))
        if not data.exists():
            raise CheckpointError(f"{file} keeps {tensor.name} in {data}, which does not exist")
        shape, dtype = tuple(tensor.dims), _TYPES[tensor.data_type]
        place = int(entry.get("offset", 0)), int(entry.get("length", math.prod(shape) * _BITS[dtype] // 8))
        found[tensor.name] = StoredTensor(tensor.name, data, *place, dtype, shape)
    return join(_as_rows(found), str(file))


def _as_rows(found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Codes as rows of bytes, however the graph declares them; signed ones (DequantizeLinear's) as a `GroupTensor` at once."""
    out = dict(found)
    for name, scales in found.items():
        if not name.endswith(SCALES) or (codes := found.get(base := name.removesuffix(SCALES))) is None:
            continue
        if codes.dtype in ("I4", "I8"):
            format = QUANTIZED["q4" if codes.dtype == "I4" else "q8"]
            kind = format.name.upper()
            fields = (base, codes.file, codes.offset, codes.nbytes, kind, codes.shape, format, scales, True)
            out[base] = GroupTensor(*fields)
            del out[name]
        else:
            out[base] = replace(codes, shape=(codes.shape[0], int(math.prod(codes.shape[1:]))))
    return out


__all__ = ["read_initializers"]
