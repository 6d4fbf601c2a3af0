"""What a spec costs, before anything is built: parameters, bytes, KV cache, FLOPs. Arithmetic on the declarations only."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from edgeformer.spec import Layer, Linear, Model, Stacked, Table, layers, leaves, passes, tensors
from edgeformer.spec.task import Task

BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "q8": 8.5 / 8, "q4": 4.5 / 8}
"""Group-32 formats carry one fp16 scale per 32 weights: 8.5 and 4.5 bits."""


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
    """Count a model. `cache_bytes` per cached value: 2 for fp16, 4 for float32.

    A window's cache is counted in full: that is what growing and shared caches allocate.
    """
    count = parameters(spec)
    vectors = sum(math.prod(s) for s in tensors(spec).values() if len(s) == 1)
    weight_bytes = {
        # norms and biases stay fp16 in the group formats
        name: int((count - vectors) * size + vectors * (size if name in ("fp32", "fp16", "bf16") else 2))
        for name, size in BYTES_PER_WEIGHT.items()
    }
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
    """Weights that one step of one token multiplies with: all maps, of experts the chosen ones, and the head; no tables."""
    return _flops(spec) // 2


def attention_flops(spec: Model, length: int, new: int = 1) -> int:
    """Operations of the scores and weighted values of the last `new` of `length` tokens, by what each one's mask lets it see."""
    counts: Counter[Layer] = Counter()
    for layer, _, times in passes(spec):
        if layer.flops_per_key():
            counts[layer] += times
    seen = ((sum(layer.keys_seen(at, length) for at in range(length - new, length)), layer) for layer in counts)
    return sum(keys * layer.flops_per_key() * counts[layer] for keys, layer in seen)


def head_parameters(spec: Model) -> int:
    """Weights of the map to logits; 0 of a model without one."""
    return 0 if spec.task == Task.FEATURE_EXTRACTION else spec.embedding_width * spec.vocab


def tree(spec: Model) -> list[str]:
    """The spec as indented lines; runs of equal blocks are one line."""
    import dataclasses

    lines: list[str] = []

    def describe(layer: Layer, depth: int, label: str) -> None:
        plain = {
            f.name: getattr(layer, f.name)
            for f in dataclasses.fields(layer)
            if isinstance(getattr(layer, f.name), (int, float, str)) and getattr(layer, f.name) != f.default
        }
        if getattr(layer, "order", None) is not None:
            plain["order"] = ",".join(map(str, layer.order))  # type: ignore[attr-defined]
        values = " ".join(f"{k}={v}" for k, v in plain.items())
        lines.append("  " * depth + f"{label}{layer.kind} {values}".rstrip())
        for f in dataclasses.fields(layer):
            value = getattr(layer, f.name)
            if isinstance(value, tuple):
                for start, end, block in _runs(value):
                    span = f"{start}" if start == end else f"{start}-{end}"
                    describe(block, depth + 1, f"{f.name}[{span}]: ")
            elif dataclasses.is_dataclass(value) and hasattr(value, "kind") and value != f.default:
                describe(value, depth + 1, f"{f.name}: ")  # type: ignore[arg-type]

    describe(spec, 0, "")
    return lines


def _runs(blocks: tuple) -> list[tuple[int, int, Layer]]:
    runs: list[tuple[int, int, Layer]] = []
    for i, block in enumerate(blocks):
        if not isinstance(block, Layer):
            continue
        if runs and runs[-1][2] == block:
            runs[-1] = (runs[-1][0], i, block)
        else:
            runs.append((i, i, block))
    return runs
