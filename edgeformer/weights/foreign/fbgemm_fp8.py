"""fbgemm_fp8, as Meta's Llama FP8 checkpoints have it: F8_E4M3 weights with a scale per row, `<path>.weight_scale`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeformer.weights.foreign import fp8
from edgeformer.weights.foreign._groups import Joined
from edgeformer.weights.safetensors_file import StoredTensor


def join(stored: Mapping[str, StoredTensor], settings: Mapping[str, Any], where: str) -> Joined:
    """As `fp8.join`."""
    return fp8.join(stored, settings, where, "fbgemm_fp8")
