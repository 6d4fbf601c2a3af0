"""MXFP4 as transformers stores it: `<name>_blocks` U8 `[..., outputs, groups, 16]` and `<name>_scales` U8 `[..., outputs,
groups]`, groups of 32 inputs, exponents with bias 127."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeformer.errors import CheckpointError
from edgeformer.weights.foreign._groups import Joined
from edgeformer.weights.foreign._small_floats import SmallFloatTensor
from edgeformer.weights.safetensors_file import StoredTensor


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """A checkpoint's tensors with weights in place of blocks and scales.

    Raises:
        CheckpointError: blocks without scales, or ones that don't fit each other.
    """
    out = dict(stored)
    for name, blocks in stored.items():
        if not name.endswith("_blocks"):
            continue
        base = name.removesuffix("_blocks")
        scales = stored.get(f"{base}_scales")
        if (
            scales is None
            or not scales.shape
            or (blocks.dtype, scales.dtype) != ("U8", "U8")
            or blocks.shape != (*scales.shape, 16)
        ):
            given = "no scales" if scales is None else f"scales {list(scales.shape)} of type {scales.dtype}"
            raise CheckpointError(
                f"{where}: {name} is {list(blocks.shape)} of type {blocks.dtype} with {given}; MXFP4 has U8 [..., groups, 16]"
                " and U8 [..., groups]"
            )
        place = base, blocks.file, blocks.offset, blocks.nbytes
        shape = (*scales.shape[:-1], scales.shape[-1] * 32)
        out[base] = SmallFloatTensor(*place, "MXFP4", shape, (blocks, scales), 32, identity=blocks.identity)
        del out[name], out[f"{base}_scales"]
    return Joined(out, "mxfp4", {})
