"""What a spec costs and what a machine can do: the survey's key-value caches, bytes and operations, measured rates."""

from __future__ import annotations

import math

import pytest
from support import STDLIB

from edgeformer.checkpoint.loading import load
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.measure.roofline import LARGE, bound, measure_rates
from edgeformer.measure.row import Shape
from edgeformer.weights.costs import costs, multiplied, parameters

PUBLISHED = {
    # (layers, key-value heads, head size) -> MiB at 2,048 tokens in fp16: arXiv 2409.15790, figure of the memory's parts
    "SmolLM-135M": ((30, 3, 64), 45),
    "Qwen2-1.5B": ((28, 2, 128), 56),
    "Gemma-2B": ((18, 1, 256), 36),
    "Bloom-1B1": ((24, 16, 96), 288),
    "StableLM-3B": ((32, 32, 80), 640),
    "OpenELM-3B, if it were multi-head": ((36, 24, 128), 864),
}


def decoder(layers: list[tuple[int, int]]) -> Decoder:
    """A decoder of layers with so many key-value heads of a size."""
    blocks = tuple(
        Block(
            norm=RMSNorm(),
            attention=GQA(heads=heads, kv_heads=heads, head_dim=dim),
            ffn=GLU(hidden=64),
        )
        for heads, dim in layers
    )
    return Decoder(vocab=64, width=64, context=2048, blocks=blocks)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_caches(name):
    """The oracle is the survey's figure."""
    (count, heads, dim), mib = PUBLISHED[name]
    spec = decoder([(heads, dim)] * count)
    assert costs(spec).kv_bytes_per_token * 2048 == mib * 2**20


def test_heads_that_differ_by_layer():
    """Layers add up, whatever each has."""
    spec = decoder([(3, 128), (4, 128), (6, 64)])
    assert costs(spec).kv_bytes_per_token == 2 * 2 * (3 * 128 + 4 * 128 + 6 * 64)


def test_bounds_by_hand():
    """A cache-resident and a large model; prefill by arithmetic, decode by bandwidth."""
    spec = load(STDLIB).spec
    rates = {"bandwidth": [[10**7, 50e9], [LARGE, 10e9]], "fp32_flops": 3e11, "int8_ops": 12e11}
    shape = Shape(100, 20, 1, 50)
    small = bound(spec, shape, rates, weight_bytes=5 * 10**6, kv="fp32", compute="fp32", prefill=False)
    large = bound(spec, shape, rates, weight_bytes=10**9, kv="fp32", compute="fp32", prefill=False)
    assert small is not None and large is not None and small.by == "bandwidth" == large.by
    share = multiplied(spec) / parameters(spec)
    kv = 2 * 6 * 2 * 32 * 4 * (50 + 100 + 10 + 1)
    assert math.isclose(small.ns, (5e6 * share + kv) / 50e9 * 1e9, rel_tol=1e-6)
    assert math.isclose(large.ns, (1e9 * share + kv) / 10e9 * 1e9, rel_tol=1e-6)
    prefill = bound(spec, shape, rates, weight_bytes=5 * 10**6, kv="fp32", compute="fp32", prefill=True)
    fast = bound(spec, shape, rates, weight_bytes=5 * 10**6, kv="fp32", compute="int8", prefill=True)
    assert prefill is not None and fast is not None and prefill.by == "arithmetic"
    head, body = 2 * 4096 * 256, 2 * (multiplied(spec) - 4096 * 256)
    scores = 4 * 6 * 8 * 32 * (50 + 50)
    assert math.isclose(prefill.flops, 100 * (body + scores) + head, rel_tol=1e-3) and prefill.ns / fast.ns == 4
    assert bound(spec, shape, {}, weight_bytes=1, kv="fp32", compute="fp32", prefill=True) is None


def test_rates_of_this_machine():
    """Positive, and not absurd: a core reads and multiplies more than it did in 1995 and less than all GPUs of the world."""
    found = measure_rates(1, [10**6])["cpu"]
    assert [size for size, _ in found["bandwidth"]] == [10**6, LARGE]
    assert all(10**8 < rate < 10**14 for _, rate in found["bandwidth"])
    assert 10**8 < found["fp32_flops"] < 10**15 and 10**8 < found["int8_ops"] < 10**16
