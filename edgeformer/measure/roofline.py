"""How close a row comes to what the machine can do (Williams, Waterman, Patterson 2009), by rates measured in the same run.

Bytes and operations are counted from the spec: weights that a step multiplies with are read once, cached keys and values of
every position are read once, activations count nothing. A step can't be faster than bytes / bandwidth, nor than operations /
rate; the bound is the larger, and a row's fraction is bound / time. Bandwidth is that of a buffer as large as the weights: a
model that fits into a cache is compared with the cache.
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
    """Every device's rates, by the device's name; see the probes. Beside the sizes asked for, of a buffer no cache holds."""
    wanted = sorted({*sizes, LARGE})
    found = {}
    for name, module in discover.each(PACKAGE):
        with discover.sparing(PACKAGE, name):
            if (made := module.rates(threads, wanted)) is not None:
                found[name] = made
    return found


@dataclass(frozen=True)
class Bound:
    """A prefill or a decode step: bytes read, operations, the least time in ns, and which of the two it is bound by."""

    bytes: int
    flops: int
    ns: float
    by: str


def bound(
    spec: Model, shape: Shape, rates: dict[str, Any], *, weight_bytes: int, kv: str, compute: str, prefill: bool
) -> Bound | None:
    """The least time of a row's prefill, or of its decode step with half of the tokens generated; None without rates.

    Args:
        spec: the model.
        shape: what the row ran.
        rates: one device's.
        weight_bytes: bytes that all weights take in this precision.
        kv: what the cache holds: fp32, fp16, bf16, int8.
        compute: what products are of: fp32, fp16, bf16, int8.
        prefill: of the prefill, not of a decode step.
    """
    faster = {"int8": "int8_ops", "fp16": "fp16_flops", "bf16": "fp16_flops"}.get(compute, "fp32_flops")
    rate = rates.get(faster) or rates.get("fp32_flops")
    if not rates.get("bandwidth") or not rate:
        return None
    counted = costs(spec)
    used = multiplied(spec)
    read = int(weight_bytes * used / counted.parameters)
    new = shape.prompt if prefill else 1
    before = shape.depth if prefill else shape.depth + shape.prompt + shape.gen // 2
    causal = spec.task == Task.TEXT_GENERATION
    moved = read + shape.batch * _cached_bytes(spec, before + new, CACHE_BYTES.get(kv, 4))
    flops = shape.batch * (new * counted.flops_per_token + attention_flops(spec, before + new, new))
    if prefill and causal:  # the head sees the last position alone
        flops -= shape.batch * (new - 1) * 2 * head_parameters(spec)
    by_bytes = moved / _bandwidth(rates["bandwidth"], read) * 1e9
    by_flops = flops / rate * 1e9
    return Bound(moved, flops, max(by_bytes, by_flops), "bandwidth" if by_bytes >= by_flops else "arithmetic")


def _cached_bytes(spec: Model, tokens: int, bytes_per_value: int) -> int:
    """Keys and values that a step reads: no more than its mask lets it see."""
    total = 0
    for _, layer, _ in layers(spec):
        if cached := layer.cache():
            seen = layer.keys_seen(tokens - 1, tokens)
            total += seen * bytes_per_value * sum(heads * dim for heads, dim in cached.values())
    return total


def _bandwidth(measured: list[list[float]], size: int) -> float:
    """Of the smallest buffer measured that is at least this large, else of the largest."""
    fitting = [rate for at, rate in sorted(measured) if at >= size]
    return fitting[0] if fitting else sorted(measured)[-1][1]
