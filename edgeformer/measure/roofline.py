"""Roofline model (Williams, Waterman, Patterson 2009): how close a row comes to machine rates measured in the same run.

Bytes and operations are counted from the spec: weights used by a step are read once, cached keys and values of every visible
position are read once, activations are ignored. A step takes at least bytes / bandwidth and at least operations / rate; the
bound is the larger of the two, and a row's fraction is bound / time. Bandwidth is measured on a buffer as large as the weights,
so a model that fits into a CPU cache is compared with that cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeformer import discover
from edgeformer.measure.row import Shape
from edgeformer.spec import Model, layers
from edgeformer.spec.task import Task
from edgeformer.weights.costs import attention_flops, costs, head_parameters, multiplied
from edgeformer.weights.precision import FLOAT_TYPES

PACKAGE = "edgeformer.measure.probes"
LARGE = 512_000_000
CACHE_BYTES = {name: t.itemsize for name, t in FLOAT_TYPES.items()} | {"int8": 1}


def measure_rates(threads: int, sizes: list[int]) -> dict[str, Any]:
    """Peak rates by device name; see the probes. Besides `sizes`, also measures a buffer too large for any cache."""
    wanted = sorted({*sizes, LARGE})
    found = {}
    for name, module in discover.each(PACKAGE):
        with discover.sparing(PACKAGE, name):
            if (made := discover.function(module, "rates")(threads, wanted)) is not None:
                found[name] = made
    return found


@dataclass(frozen=True)
class Bound:
    """Lower bound of a prefill or decode step: bytes read, operations, minimum time in ns, and the limiting resource."""

    bytes: int
    flops: int
    ns: float
    by: str


def bound(
    spec: Model, shape: Shape, rates: dict[str, Any], *, weight_bytes: int, kv: str, compute: str, prefill: bool
) -> Bound | None:
    """The minimum time of a row's prefill, or of its decode step halfway through generation; None without rates, and for
    encoder–decoder models.

    Args:
        spec: the model.
        shape: what the row ran.
        rates: the rates of one device.
        weight_bytes: bytes of all weights in this precision.
        kv: dtype of the KV cache: fp32, fp16, bf16, int8.
        compute: dtype of matrix products: fp32, fp16, bf16, int8.
        prefill: bound the prefill instead of a decode step.
    """
    faster = {"int8": "int8_ops", "fp16": "fp16_flops", "bf16": "fp16_flops"}.get(compute, "fp32_flops")
    rate = rates.get(faster) or rates.get("fp32_flops")
    if not rates.get("bandwidth") or not rate:
        return None
    if spec.task == Task.TEXT2TEXT_GENERATION:  # its two sides run different numbers of tokens
        return None
    counted = costs(spec)
    used = multiplied(spec)
    read = int(weight_bytes * used / counted.parameters)
    new = shape.prompt if prefill else 1
    before = shape.depth if prefill else shape.depth + shape.prompt + shape.gen // 2
    causal = spec.task == Task.TEXT_GENERATION
    moved = read + shape.batch * _cached_bytes(spec, before + new, CACHE_BYTES.get(kv, 4))
    flops = shape.batch * (new * counted.flops_per_token + attention_flops(spec, before + new, new))
    if prefill and causal:  # the head runs on the last position only
        flops -= shape.batch * (new - 1) * 2 * head_parameters(spec)
    by_bytes = moved / _bandwidth(rates["bandwidth"], read) * 1e9
    by_flops = flops / rate * 1e9
    return Bound(moved, flops, max(by_bytes, by_flops), "bandwidth" if by_bytes >= by_flops else "arithmetic")


def _cached_bytes(spec: Model, tokens: int, bytes_per_value: int) -> int:
    """Bytes of cached keys and values that a step reads: only positions its mask lets it see."""
    if spec.task == Task.FEATURE_EXTRACTION:  # an encoder of causal blocks caches nothing
        return 0
    total = 0
    for _, layer, _ in layers(spec):
        if cached := layer.cache():
            seen = layer.keys_seen(tokens - 1, tokens)
            total += seen * bytes_per_value * sum(heads * dim for heads, dim in cached.values())
    return total


def _bandwidth(measured: list[list[float]], size: int) -> float:
    """Bandwidth of the smallest measured buffer of at least this size, else of the largest."""
    fitting = [rate for at, rate in sorted(measured) if at >= size]
    return fitting[0] if fitting else sorted(measured)[-1][1]
