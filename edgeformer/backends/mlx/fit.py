"""Check whether a model fits into memory before anything is loaded."""

from __future__ import annotations

import mlx.core as mx
import psutil

from edgeformer.backends.mlx.decode import CHUNK
from edgeformer.backends.mlx.load import DTYPES
from edgeformer.backends.mlx.store import layout
from edgeformer.errors import InputError
from edgeformer.layers.rope import length_dependent
from edgeformer.spec import Linear, Model, leaves


def cache_bytes(spec: Model, batch: int, capacity: int, precision: str) -> int:
    """Bytes of the KV cache at full capacity."""
    per_token = sum(heads * dim for names in layout(spec).values() for heads, dim in names.values())
    return per_token * batch * capacity * DTYPES[precision].size


def needed_bytes(spec: Model, weight_bytes: int, batch: int, capacity: int, precision: str) -> int:
    """Bytes of weights, KV cache and activations: four arrays as wide as the widest linear map for one chunk of a prompt (all of
    it if it can't be chunked), and the logits."""
    widths = [leaf.outputs for _, leaf in leaves(spec) if isinstance(leaf, Linear) and leaf.outputs != spec.vocab]
    rows = batch * (capacity if length_dependent(spec) else min(CHUNK, capacity))
    activations = 4 * rows * max(widths, default=spec.width) * DTYPES[precision].size + batch * spec.vocab * 4
    return weight_bytes + cache_bytes(spec, batch, capacity, precision) + activations


def budget_bytes() -> tuple[int, str]:
    """Available bytes, and the limit's name: Metal's recommended working set, a GPU's free memory, or the machine's."""
    info = mx.device_info()
    if mx.metal.is_available():
        return int(info["max_recommended_working_set_size"]), "Metal's recommended working set"
    if mx.default_device() == mx.gpu and (free := info.get("free_memory")):
        return int(free), "the GPU's free memory"
    return psutil.virtual_memory().available, "free memory"


def check_fit(needed: int, name: str) -> None:
    """Refuse a model that doesn't fit; if it does, raise Metal's wired memory limit to the budget.

    Raises:
        InputError: the model needs more memory than is available.
    """
    budget, what = budget_bytes()
    if needed > budget:
        raise InputError(
            f"{name} needs {needed / 1e9:.2f} GB (weights, KV cache, activations), but {what} is {budget / 1e9:.2f} GB;"
            " use 4-bit weights, a smaller precision, or shorter sequences"
        )
    if mx.metal.is_available():
        mx.set_wired_limit(budget)
