"""compressed-tensors, which llm-compressor and vLLM write: packed integers (w4a16, w8a16), bytes and 8-bit floats, MXFP4 and
NVFP4.

The tensors of a weight tell its form: `weight_packed` int32 `[outputs, inputs · bits / 32]`, codes + 2^(bits - 1) from the lowest
bits, with `weight_scale` `[outputs, groups]`, `weight_shape`, and where it is asymmetric `weight_zero_point`, packed along the
outputs; `weight` in I8 or F8_E4M3 with `weight_scale`; `weight_packed` U8 of 4-bit floats with `weight_scale` in U8 or F8_E4M3
(https://github.com/vllm-project/compressed-tensors)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.weights.bit_packing import unpacked
from edgeformer.weights.foreign._groups import FLOATS, GroupedTensor, Joined, floats, piece, words
from edgeformer.weights.foreign._scaled import CODES, scaled
from edgeformer.weights.foreign._small_floats import SmallFloatTensor
from edgeformer.weights.safetensors_file import StoredTensor, read_raw

Place = tuple[str, Path, int, int]
"""Name, file, offset and size in bytes of a stored tensor."""
_PIECES = ("packed", "scale", "shape", "zero_point", "g_idx", "global_scale")
_UNUSED = {
    **dict.fromkeys(
        ("input_scale", "input_zero_point", "input_global_scale"), "scales of activations, which aren't rounded here"
    ),
    **dict.fromkeys(("k_scale", "v_scale", "q_scale"), "scales of a quantized KV cache, which isn't rounded here"),
}  # fmt: skip


@dataclass(frozen=True)
class PackedIntegers(GroupedTensor):
    """pieces: weight_packed, weight_scale, and of asymmetric ones weight_zero_point; order: weight_g_idx."""

    order: StoredTensor | None

    def parts(self) -> tuple[StoredTensor, ...]:
        return (*self.pieces, *(() if self.order is None else (self.order,)))

    def codes(self) -> np.ndarray:
        return unpacked(words(self.pieces[0]), self.bits)[:, : self.shape[1]]

    def scales(self) -> np.ndarray:
        return floats(self.pieces[1])

    def zeros(self) -> np.ndarray:
        if len(self.pieces) == 2:
            return np.array([[1 << (self.bits - 1)]])
        return unpacked(np.ascontiguousarray(words(self.pieces[2]).T), self.bits).T[: self.shape[0]].astype(np.int16)

    def group_of(self) -> np.ndarray | None:
        return None if self.order is None else read_raw(self.order, np.dtype("<i4"), (self.shape[1],))


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """A checkpoint's tensors with a weight `<path>.weight` in place of each path's pieces.

    Raises:
        CheckpointError: a form that isn't read, or pieces that are missing or don't fit each other.
    """
    out, unused, declared = dict(stored), {}, _declared(settings)
    for name, tensor in stored.items():
        path, _, leaf = name.rpartition(".")
        if leaf in _UNUSED:
            unused[name] = _UNUSED[leaf]
        packed = leaf == "weight_packed"
        if not path or not (packed or (leaf == "weight" and tensor.dtype in CODES)):
            continue
        out[f"{path}.weight"] = (_packed if packed else _bytes)(stored, path, declared, f"{where}: {path}")
        for part in _PIECES:
            out.pop(f"{path}.weight_{part}", None)
    return Joined(out, "compressed-tensors", unused)


@dataclass(frozen=True)
class _Declared:
    """What `config_groups` says of weights: all bits and block sizes that occur."""

    bits: frozenset[int]
    blocks: tuple[tuple[int, int], ...]


def _declared(settings: Mapping[str, Any]) -> _Declared:
    groups = settings.get("config_groups")
    found = [g.get("weights") for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    said = [w for w in found if isinstance(w, Mapping)]
    bits = {w["num_bits"] for w in said if isinstance(w.get("num_bits"), int)}
    blocks = [b for w in said if isinstance(b := w.get("block_structure"), list) and len(b) == 2]
    known = [(b[0], b[1]) for b in blocks if all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in b)]
    return _Declared(frozenset(bits), tuple(dict.fromkeys([*known, (128, 128)])))


def _bytes(stored: Mapping[str, StoredTensor], path: str, declared: _Declared, where: str) -> StoredTensor:
    codes, scales = stored[f"{path}.weight"], stored.get(f"{path}.weight_scale")
    if scales is None:
        raise CheckpointError(f"{where}: the weight is of type {codes.dtype} and has no weight_scale")
    zero = stored.get(f"{path}.weight_zero_point")
    if zero is not None and read_raw(zero, np.dtype(np.uint8), (zero.nbytes,)).any():
        raise CheckpointError(f"{where}: asymmetric codes of a byte aren't read; give the original checkpoint")
    block = None
    if len(codes.shape) == len(scales.shape) == 2:
        grids = {b: (-(-codes.shape[0] // b[0]), -(-codes.shape[1] // b[1])) for b in declared.blocks}
        block = next((b for b, grid in grids.items() if grid == scales.shape), None)
    return scaled(codes, scales, "INT8" if codes.dtype == "I8" else "FP8", where, block=block)


def _packed(stored: Mapping[str, StoredTensor], path: str, declared: _Declared, where: str) -> StoredTensor:
    packed, scales = stored[f"{path}.weight_packed"], stored.get(f"{path}.weight_scale")
    if scales is None or len(packed.shape) != 2 or len(scales.shape) != 2 or not scales.shape[1]:
        raise CheckpointError(f"{where}: weight_packed and weight_scale are not [outputs, ...] both")
    outputs, groups = packed.shape[0], scales.shape[1]
    place = f"{path}.weight", packed.file, packed.offset, packed.nbytes
    if packed.dtype == "U8":
        return _floats(stored, path, place, packed, scales, where)
    piece(stored, f"{path}.weight_packed", ("I32",), (outputs, None), where)
    piece(stored, f"{path}.weight_scale", FLOATS, (outputs, groups), where)
    shape = read_raw(piece(stored, f"{path}.weight_shape", ("I64",), (2,), where), np.dtype("<i8"), (2,))
    inputs = int(shape[1])
    fitting = [b for b in declared.bits or (2, 4, 8) if packed.shape[1] == -(-inputs * b // 32)]
    bits = fitting[0] if len(fitting) == 1 and fitting[0] in (2, 4, 8) else 0
    if int(shape[0]) != outputs or inputs <= 0 or not bits:
        raise CheckpointError(
            f"{where}: weight_packed {list(packed.shape)} doesn't hold 2, 4 or 8 bits of a weight"
            f" {shape.tolist()}; these are read"
        )
    order = stored.get(f"{path}.weight_g_idx")
    if inputs % groups:
        raise CheckpointError(f"{where}: {groups} groups don't divide {inputs} inputs")
    if order is not None:
        order = piece(stored, f"{path}.weight_g_idx", ("I32",), (inputs,), where)
        found = read_raw(order, np.dtype("<i4"), (inputs,))
        if (found == -1).all() or np.array_equal(found, np.arange(inputs) // (inputs // groups)):
            order = None
        elif not 0 <= found.min() <= found.max() < groups:
            raise CheckpointError(f"{where}: weight_g_idx names a group beyond the {groups} that have scales")
    pieces = [packed, scales]
    if f"{path}.weight_zero_point" in stored:
        rows = -(-outputs * bits // 32)
        pieces.append(piece(stored, f"{path}.weight_zero_point", ("I32",), (rows, groups), where))
    made = PackedIntegers(*place, f"INT{bits}", (outputs, inputs), tuple(pieces), bits, order, identity=packed.identity)
    return made.kept()


def _floats(
    stored: Mapping[str, StoredTensor], path: str, place: Place, packed: StoredTensor, scales: StoredTensor, where: str
) -> StoredTensor:
    outputs, inputs = packed.shape[0], packed.shape[1] * 2
    group = inputs // scales.shape[1]
    if (
        not group
        or scales.shape != (outputs, inputs // group)
        or (scales.dtype, group) not in (("F8_E4M3", 16), ("U8", 32))
    ):
        raise CheckpointError(
            f"{where}: weight_scale is {list(scales.shape)} of type {scales.dtype}; U8 per 32 inputs (MXFP4) and F8_E4M3 per"
            " 16 (NVFP4) are read"
        )
    pieces = [packed, scales]
    if scales.dtype == "F8_E4M3":
        pieces.append(piece(stored, f"{path}.weight_global_scale", FLOATS, (1,), where))
    kind = "NVFP4" if group == 16 else "MXFP4"
    return SmallFloatTensor(*place, kind, (outputs, inputs), tuple(pieces), group, identity=packed.identity)
