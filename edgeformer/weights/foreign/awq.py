"""AWQ as AutoAWQ stores it (version gemm), 4 bits.

`<path>.qweight` int32 `[inputs, outputs / 8]` and `qzeros` int32 `[groups, outputs / 8]`, packed along the outputs, eight to a
word in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits; `scales` fp16 `[groups, outputs]`
(https://github.com/casper-hansen/AutoAWQ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.quoting import shown
from edgeformer.weights.bit_packing import unpacked
from edgeformer.weights.foreign._groups import FLOATS, GroupedTensor, Joined, floats, piece, words
from edgeformer.weights.safetensors_file import StoredTensor

_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where the n-th of eight codes lies in a word."""


@dataclass(frozen=True)
class AwqTensor(GroupedTensor):
    """pieces: qweight, qzeros, scales."""

    def codes(self) -> np.ndarray:
        return _in_order(words(self.pieces[0])).T

    def scales(self) -> np.ndarray:
        return floats(self.pieces[2]).T

    def zeros(self) -> np.ndarray:
        return _in_order(words(self.pieces[1])).T.astype(np.int16)


def _in_order(packed: np.ndarray) -> np.ndarray:
    """Codes [rows, outputs] of words [rows, outputs / 8]."""
    codes = unpacked(packed, 4).reshape(*packed.shape, 8)
    return codes[..., _PLACES].reshape(len(packed), -1)


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """A checkpoint's tensors with a weight `<path>.weight` in place of each path's pieces.

    Raises:
        CheckpointError: another version than gemm, other bits than 4, or pieces that don't fit each other.
    """
    version, bits = settings.get("version", "gemm"), settings.get("bits", settings.get("w_bit", 4))
    if not isinstance(version, str) or version.lower() != "gemm" or bits != 4:
        raise CheckpointError(
            f"{where}: quantization_config is AWQ's version {shown(version)} with {shown(bits)} bits; gemm with 4 bits is read."
            " Give the original"
        )
    out = dict(stored)
    for name in stored:
        if not name.endswith(".qweight"):
            continue
        path = name.removesuffix(".qweight")
        packed = piece(stored, name, ("I32",), (None, None), where)
        inputs, outputs = packed.shape[0], packed.shape[1] * 8
        scales = piece(stored, f"{path}.scales", FLOATS, (None, outputs), where)
        groups = scales.shape[0]
        if not groups or inputs % groups:
            raise CheckpointError(f"{where}: {path} has {groups} groups of its {inputs} inputs")
        zeros = piece(stored, f"{path}.qzeros", ("I32",), (groups, packed.shape[1]), where)
        place = f"{path}.weight", packed.file, packed.offset, packed.nbytes
        pieces = (packed, zeros, scales)
        made = AwqTensor(*place, "AWQ4", (outputs, inputs), pieces, 4, identity=packed.identity)
        out[made.name] = made.kept()
        for part in ("qweight", "qzeros", "scales"):
            del out[f"{path}.{part}"]
    return Joined(out, "AWQ (4 bits)", {})
