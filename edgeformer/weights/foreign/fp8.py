"""8-bit floats, as DeepSeek-V3, Qwen3-FP8 and vLLM's AutoFP8 store them.

`<path>.weight` is F8_E4M3; its scales are `<path>.weight_scale_inv`, a factor per block of `weight_block_size` (128 by 128;
DeepSeek-AI 2024, arXiv 2412.19437, section 3.3), or `<path>.weight_scale`, one for the tensor or for each row. `input_scale`
rounds activations, which isn't done here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeformer.errors import CheckpointError
from edgeformer.files.quoting import shown
from edgeformer.weights.foreign._groups import Joined
from edgeformer.weights.foreign._scaled import CODES, scaled
from edgeformer.weights.safetensors_file import StoredTensor

_SCALES = ("weight_scale_inv", "weight_scale")
_UNUSED = {
    **dict.fromkeys(
        ("input_scale", "activation_scale", "input_scale_ub"), "scales of activations, which aren't rounded here"
    ),
    **dict.fromkeys(("k_scale", "v_scale"), "scales of a quantized KV cache, which isn't rounded here"),
}


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str, method: str = "fp8") -> Joined:
    """A checkpoint's tensors with weights in place of codes and scales.

    Raises:
        CheckpointError: codes without scales, or ones that don't fit each other.
    """
    size = settings.get("weight_block_size")
    if size is not None and not (
        isinstance(size, list)
        and len(size) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
    ):
        raise CheckpointError(
            f"{where}: quantization_config.weight_block_size is {shown(size)}, not two positive sizes"
        )
    block = None if size is None else (size[0], size[1])
    out, unused = dict(stored), {}
    for name, codes in stored.items():
        path, _, leaf = name.rpartition(".")
        if leaf in _UNUSED:
            unused[name] = _UNUSED[leaf]
        if codes.dtype not in CODES or leaf != "weight":
            continue
        scales = next((stored[n] for s in _SCALES if (n := f"{path}.{s}") in stored), None)
        if scales is None:
            raise CheckpointError(
                f"{where}: {name} is of type {codes.dtype} and has no {' or '.join(_SCALES)}, so it can't be dequantized"
            )
        out[name] = scaled(codes, scales, "FP8", where, block=block)
        for s in _SCALES:
            out.pop(f"{path}.{s}", None)
    return Joined(out, method, unused)
