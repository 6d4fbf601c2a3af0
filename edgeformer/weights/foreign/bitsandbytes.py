"""bitsandbytes, 8 and 4 bits.

LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): `<path>.weight` I8 with `<path>.SCB` F32 `[outputs]`; a weight is code · SCB
/ 127. NF4 and FP4 (Dettmers et al. 2023, arXiv 2305.14314): `<path>.weight` U8, two codes to a byte, the first in the high half;
`.absmax` per `blocksize` weights, `.quant_map` the 16 values, and a JSON object in `.quant_state.bitsandbytes__nf4`; with double
quantization `.absmax` holds codes of `.nested_quant_map` with a scale per `nested_blocksize`, `.nested_absmax`, around
`nested_offset`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.json_file import parse_json
from edgeformer.weights.foreign._groups import ForeignTensor, Joined, floats, piece
from edgeformer.weights.foreign._scaled import scaled
from edgeformer.weights.safetensors_file import StoredTensor, read_raw

_STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *_STATES)
_MOST_JSON = 1 << 16


@dataclass(frozen=True)
class BlockTensor(ForeignTensor):
    """pieces: weight, absmax, quant_map, and with double quantization nested_absmax and nested_quant_map."""

    block: int
    nested_block: int
    nested_offset: float

    def values(self) -> np.ndarray:
        weight, absmax, table, *nested = self.pieces
        packed = read_raw(weight, np.dtype(np.uint8), (weight.nbytes,))
        codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)
        if nested:
            scales, values = (floats(t).reshape(-1) for t in nested)
            of = read_raw(absmax, np.dtype(np.uint8), (absmax.nbytes,))
            largest = values[of] * np.repeat(scales, self.nested_block)[: len(of)] + np.float32(self.nested_offset)
        else:
            largest = floats(absmax).reshape(-1)
        x = floats(table).reshape(-1)[codes][: math.prod(self.shape)]
        x *= np.repeat(largest, self.block)[: len(x)]
        return x


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """A checkpoint's tensors with weights in place of their pieces.

    Raises:
        CheckpointError: pieces are missing, or don't fit each other.
    """
    out = dict(stored)
    for name in stored:
        path, _, leaf = name.rpartition(".")
        if leaf == "SCB":
            codes = piece(stored, f"{path}.weight", ("I8",), (None, None), where)
            out[f"{path}.weight"] = scaled(codes, stored[name], "INT8", where, factor=1 / 127)
            del out[name]
            out.pop(f"{path}.weight_format", None)
        state = next((s for s in _STATES if name.endswith(f".weight.{s}")), None)
        if state is not None:
            weight = name.removesuffix(f".{state}")
            out[weight] = _blocks(stored, weight, stored[name], where)
            for part in _PARTS:
                out.pop(f"{weight}.{part}", None)
    return Joined(out, "bitsandbytes", {})


def _blocks(stored: Mapping[str, StoredTensor], name: str, state: StoredTensor, where: str) -> StoredTensor:
    said = _said(state, f"{where}: {state.name}")
    shape, block = said.get("shape"), said.get("blocksize")
    nested_block, offset = said.get("nested_blocksize", 0), said.get("nested_offset", 0.0)
    sizes = [*shape, block] if isinstance(shape, list) else [None]
    if not (
        all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 40 for n in sizes)
        and isinstance(nested_block, int)
        and not isinstance(nested_block, bool)
        and isinstance(offset, (int, float))
        and -1e30 < offset < 1e30
    ):
        raise CheckpointError(f"{where}: {state.name} has no readable shape and blocksize")
    assert isinstance(shape, list) and isinstance(block, int)
    count = math.prod(shape)
    weight = stored.get(name)
    if weight is None or weight.dtype != "U8" or weight.nbytes != -(-count // 2):
        raise CheckpointError(f"{where}: {name} doesn't hold the two codes per byte of a weight {shape[:4]}")
    blocks, nested = -(-count // block), f"{name}.nested_absmax" in stored
    absmax = piece(stored, f"{name}.absmax", ("U8",) if nested else ("F32",), (blocks,), where)
    pieces = [weight, absmax, piece(stored, f"{name}.quant_map", ("F32",), (16,), where)]
    if nested:
        if nested_block <= 0:
            raise CheckpointError(f"{where}: {state.name} has no nested_blocksize")
        pieces.append(piece(stored, f"{name}.nested_absmax", ("F32",), (-(-blocks // nested_block),), where))
        pieces.append(piece(stored, f"{name}.nested_quant_map", ("F32",), (256,), where))
    place = name, weight.file, weight.offset, weight.nbytes
    numbers = min(block, count), min(nested_block, blocks), float(offset)
    kind = "NF4" if state.name.endswith("nf4") else "FP4"
    return BlockTensor(*place, kind, tuple(shape), tuple(pieces), *numbers, identity=weight.identity)


def _said(state: StoredTensor, where: str) -> Mapping[str, Any]:
    """The JSON object in a tensor of bytes."""
    if state.dtype != "U8" or state.nbytes > _MOST_JSON:
        raise CheckpointError(f"{where} is no JSON object of up to {_MOST_JSON:,} bytes")
    found = parse_json(read_raw(state, np.dtype(np.uint8), (state.nbytes,)).tobytes(), where, CheckpointError)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where} holds no JSON object")
    return found
