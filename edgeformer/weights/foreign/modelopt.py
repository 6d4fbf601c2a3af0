"""NVIDIA's ModelOpt: FP8 (as `fp8` with a scale per tensor) and NVFP4.

NVFP4: `<path>.weight` U8, two E2M1 codes to a byte, the first in the low half; `weight_scale` F8_E4M3 per 16 inputs;
`weight_scale_2` F32, a factor of all of them (https://github.com/NVIDIA/Model-Optimizer)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeformer.errors import CheckpointError
from edgeformer.files.quoting import shown
from edgeformer.weights.foreign import fp8
from edgeformer.weights.foreign._groups import Joined, piece
from edgeformer.weights.foreign._small_floats import SmallFloatTensor
from edgeformer.weights.safetensors_file import StoredTensor


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """A checkpoint's tensors with weights in place of codes and scales.

    Raises:
        CheckpointError: another `quant_algo`, or pieces that don't fit each other.
    """
    algorithm = settings.get("quant_algo")
    if algorithm not in ("FP8", "NVFP4"):
        raise CheckpointError(
            f"{where}: quantization_config.quant_algo is {shown(algorithm)}; of ModelOpt's, FP8 and NVFP4 are read."
            " Give the original"
        )
    joined = fp8.join(stored, settings, where, f"modelopt ({algorithm})")
    for name, scale in stored.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight_scale_2":
            continue
        codes = piece(stored, f"{path}.weight", ("U8",), (None, None), where)
        outputs, half = codes.shape
        scales = piece(stored, f"{path}.weight_scale", ("F8_E4M3",), (outputs, half // 8), where)
        if half % 8 or scale.dtype != "F32" or scale.nbytes != 4:
            raise CheckpointError(
                f"{where}: {path}.weight holds no whole groups of 16 codes, or weight_scale_2 no number"
            )
        place = codes.name, codes.file, codes.offset, codes.nbytes
        joined.tensors[codes.name] = SmallFloatTensor(
            *place, "NVFP4", (outputs, half * 2), (codes, scales, scale), 16, inverse=False, identity=codes.identity
        )
        for part in ("weight_scale", "weight_scale_2"):
            del joined.tensors[f"{path}.{part}"]
    return joined
