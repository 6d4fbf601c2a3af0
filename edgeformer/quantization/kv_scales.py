"""Scales of an int8 KV cache, from each channel's largest magnitude on calibration text."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError
from edgeformer.quantization.calibration import require_torch
from edgeformer.spec.task import Task


def cache_scales(loaded: LoadedModel, ids: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """(layer path, tensor) -> float32 [heads, dim]: the largest magnitude on the text / 127, of cached keys (after RoPE) and
    values. Larger values at run time are clipped.

    Args:
        loaded: a decoder.
        ids: calibration tokens int64 [n, T].

    Raises:
        InputError: the model is not a decoder.
        RuntimeUnavailable: torch is not installed.
    """
    torch = require_torch()
    from edgeformer.ops.step import GrowingStore
    from edgeformer.runtimes.torch import build_torch

    if loaded.spec.task != Task.TEXT_GENERATION:
        raise InputError("scales of an int8 KV cache are measured on decoders only, and this model is not a decoder")
    largest: dict[tuple[str, str], Any] = {}

    class Watching(GrowingStore):
        """A store that records the largest magnitude of each cached channel."""

        def append(self, path: str, tensors: dict[str, Any]) -> tuple[Any, ...]:
            for name, x in tensors.items():
                found = x.abs().amax(dim=(0, 2))
                before = largest.get((path, name))
                largest[path, name] = found if before is None else torch.maximum(before, found)
            return super().append(path, tensors)

    model = build_torch(loaded)
    with torch.inference_mode():
        for window in ids:
            model(torch.from_numpy(window[None]), store=Watching(model.ops))
    return {key: np.maximum(x.numpy() / 127, 1e-8).astype(np.float32) for key, x in largest.items()}
