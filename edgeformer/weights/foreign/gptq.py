"""GPTQ as AutoGPTQ and GPTQModel store it, 2, 3, 4 and 8 bits, with and without act-order.

`<path>.qweight` int32 `[inputs · bits / 32, outputs]`, packed along the inputs; `qzeros` int32 `[groups, outputs · bits / 32]`,
packed along the outputs, of zeros less 1 (`checkpoint_format` gptq) or as they are (gptq_v2); `scales` fp16 `[groups, outputs]`;
`g_idx` int32 `[inputs]`, each input's group (https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/ModelCloud/GPTQModel)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.quoting import shown
from edgeformer.weights.bit_packing import unpacked
from edgeformer.weights.foreign._groups import (
    FLOATS,
    GroupedTensor,
    Joined,
    floats,
    piece,
    whole_number,
    words,
)
from edgeformer.weights.safetensors_file import StoredTensor, read_raw

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GptqTensor(GroupedTensor):
    """pieces: qweight, qzeros, scales, and g_idx unless groups are runs of inputs; added: what zeros lack.

    It is added to whole words, as GPTQModel took it off: a zero of 0 borrows from its neighbour. (3 bits: to each, modulo 8.)
    """

    added: int

    def codes(self) -> np.ndarray:
        return unpacked(np.ascontiguousarray(words(self.pieces[0]).T), self.bits)

    def scales(self) -> np.ndarray:
        return floats(self.pieces[2]).T

    def zeros(self) -> np.ndarray:
        packed = words(self.pieces[1])
        if 32 % self.bits == 0:
            each = sum(1 << at for at in range(0, 32, self.bits))
            return unpacked(packed + np.uint32(each * self.added), self.bits).T.astype(np.int16)
        return (unpacked(packed, self.bits).T.astype(np.int16) + self.added) % (1 << self.bits)

    def group_of(self) -> np.ndarray | None:
        return _order(self.pieces[3], self.shape[1]) if len(self.pieces) > 3 else None


def _order(g_idx: StoredTensor, inputs: int) -> np.ndarray:
    return read_raw(g_idx, np.dtype("<i4"), (inputs,))


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """A checkpoint's tensors with a weight `<path>.weight` in place of each path's pieces.

    Raises:
        CheckpointError: pieces are missing, or don't fit each other.
    """
    layout = settings.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(
            f"{where}: quantization_config.checkpoint_format is {shown(layout)}; gptq and gptq_v2 are read. Give the original"
        )
    bits = whole_number(settings, "bits", BITS, where)
    out, unused = dict(stored), {}
    for name in stored:
        if not name.endswith(".qweight"):
            continue
        path = name.removesuffix(".qweight")
        out[f"{path}.weight"] = _weight(stored, path, bits, int(layout == "gptq"), where)
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            out.pop(f"{path}.{part}", None)
        bias = stored.get(f"{path}.bias")
        if bias is not None and bias.raw and not replace(bias, allow_nonfinite=True).read().any():
            unused[bias.name] = "biases of zeros, which GPTQ's tools add to layers that have none"
    return Joined(out, f"GPTQ ({bits} bits)", unused)


def _weight(stored: Mapping[str, StoredTensor], path: str, bits: int, added: int, where: str) -> StoredTensor:
    packed = piece(stored, f"{path}.qweight", ("I32",), (None, None), where)
    outputs = packed.shape[1]
    order = stored.get(f"{path}.g_idx")
    inputs = packed.shape[0] * 32 // bits if order is None else order.shape[0] if len(order.shape) == 1 else 0
    if order is not None and inputs and packed.shape[0] * 32 % inputs == 0:
        bits = packed.shape[0] * 32 // inputs  # GPTQModel gives some layers other bits
    if bits not in BITS or packed.shape[0] * 32 != inputs * bits or outputs * bits % 32:
        raise CheckpointError(
            f"{where}: {path}.qweight {list(packed.shape)} doesn't hold {bits} bits of {inputs} inputs"
        )
    scales = piece(stored, f"{path}.scales", FLOATS, (None, outputs), where)
    groups = scales.shape[0]
    zeros = piece(stored, f"{path}.qzeros", ("I32",), (groups, outputs * bits // 32), where)
    pieces = [packed, zeros, scales]
    if not groups or (inputs % groups and order is None):
        raise CheckpointError(f"{where}: {path} has {groups} groups of its {inputs} inputs")
    if order is not None:
        piece(stored, f"{path}.g_idx", ("I32",), (inputs,), where)
        group_of = _order(order, inputs)
        if group_of.size and not 0 <= group_of.min() <= group_of.max() < groups:
            raise CheckpointError(f"{where}: {path}.g_idx names a group beyond the {groups} that have scales")
        if inputs % groups or not np.array_equal(group_of, np.arange(inputs) // (inputs // groups)):
            pieces.append(order)
    kind = f"GPTQ{bits}"
    place = f"{path}.weight", packed.file, packed.offset, packed.nbytes
    made = GptqTensor(*place, kind, (outputs, inputs), tuple(pieces), bits, added, identity=packed.identity)
    return made.kept()
