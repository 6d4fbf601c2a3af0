"""The costs of a spec before anything is built: parameters, bytes, KV cache, FLOPs. Arithmetic on the declarations only."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from edgeformer.spec import Layer, Linear, Model, Stacked, Table, layers, leaves, passes, tensors
from edgeformer.spec.task import Task
from edgeformer.weights.formats import QUANTIZED
from edgeformer.weights.precision import FLOAT_TYPES

BYTES_PER_WEIGHT: dict[str, float] = {
    **{name: t.itemsize for name, t in FLOAT_TYPES.items()},
    **{name: f.bits_per_weight / 8 for name, f in reversed(QUANTIZED.items())},
}
"""Bytes per weight of each precision; the group formats carry one fp16 scale per 32 weights: 8.5 and 4.5 bits."""


@dataclass(frozen=True)
class Costs:
    """Sizes in bytes; `flops_per_token` counts a multiply and an add as two, without attention scores."""

    parameters: int
    embedding_parameters: int
    weight_bytes: dict[str, int]
    kv_bytes_per_token: int
    flops_per_token: int


def parameters(layer: Layer) -> int:
    """Number of weights of a whole model."""
    return sum(math.prod(shape) for shape in tensors(layer).values())


def costs(spec: Model, *, cache_bytes: int = 2) -> Costs:
    """Count a model's costs. `cache_bytes` per cached value: 2 for fp16, 4 for float32.

    A sliding window's cache is counted in full: that is what growing and shared caches allocate.
    """
    count = parameters(spec)
    vectors = sum(math.prod(s) for s in tensors(spec).values() if len(s) == 1)
    weight_bytes = {
        # norms and biases stay fp16 in the group formats
        name: int((count - vectors) * size + vectors * (size if name in FLOAT_TYPES else 2))
        for name, size in BYTES_PER_WEIGHT.items()
    }
    cached = 0
    if spec.task != Task.FEATURE_EXTRACTION:  # an encoder of causal blocks caches nothing
        cached = sum(heads * dim for _, layer, _ in layers(spec) for heads, dim in layer.cache().values())
    tables = sum(math.prod((leaf.rows, leaf.width)) for _, leaf in leaves(spec) if isinstance(leaf, Table))
    return Costs(count, tables, weight_bytes, cached * cache_bytes, _flops(spec))


def _flops(spec: Model) -> int:
    total = 0
    for layer, width, times in passes(spec):
        for declaration in layer.params(width).values():
            if isinstance(declaration, Linear):
                total += 2 * declaration.inputs * declaration.outputs * times
            elif isinstance(declaration, Stacked):
                active = declaration.count if declaration.active is None else declaration.active
                total += 2 * active * declaration.inputs * declaration.outputs * times
    return total + (2 * spec.embedding_width * spec.vocab if spec.head_is_embedding else 0)


def multiplied(spec: Model) -> int:
    """Weights that one token multiplies with in one step: all linear maps, the chosen experts, and the head; no tables."""
    return _flops(spec) // 2


def attention_flops(spec: Model, length: int, new: int = 1) -> int:
    """Operations of the scores and weighted values of the last `new` of `length` tokens, over the keys that each sees."""
    counts: Counter[Layer] = Counter()
    for layer, _, times in passes(spec):
        if layer.flops_per_key():
            counts[layer] += times
    seen = ((sum(layer.keys_seen(at, length) for at in range(length - new, length)), layer) for layer in counts)
    return sum(keys * layer.flops_per_key() * counts[layer] for keys, layer in seen)


def head_parameters(spec: Model) -> int:
    """Weights of the map to logits; 0 for a model without one."""
    return 0 if spec.task == Task.FEATURE_EXTRACTION else spec.embedding_width * spec.vocab
