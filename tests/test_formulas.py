"""T2: layers against their formulas, written out plainly in float64. What transformers has is checked against it elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeformer.backends.numpy import Handle, NumpyModel, NumpyOps
from edgeformer.layers.additive_attention import AdditiveAttention
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.borrowed_kv import BorrowedKV
from edgeformer.layers.deep_norm_init import DeepNormInit
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.heads_layer_norm import HeadsLayerNorm
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.layers.offset_rms_norm import OffsetRMSNorm
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_2d import Rope2D
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.layers.rope_ntk import NtkScaling
from edgeformer.layers.sharing_gqa import SharingGQA
from edgeformer.layers.shaw_attention import ShawAttention
from edgeformer.layers.sinusoidal import Sinusoidal
from edgeformer.layers.swish import Swish
from edgeformer.layers.whole_norm import WholeNorm
from edgeformer.ops.step import Step
from edgeformer.spec import tensors

OPS, WIDTH, T = NumpyOps(), 12, 9
EXACT, ANGLES = 1e-12, 1e-6  # rotary angles are float32


def handle(layer, width=WIDTH, seed=0):
    """A layer with random float64 weights, and these."""
    rng, made = np.random.default_rng(seed), {}

    def weight(name):
        for full, shape in _shapes(layer, width).items():
            if full == name:
                made[name] = rng.standard_normal(shape) * 0.7
        return made[name]

    return Handle(OPS, layer, width, weight), made


def _shapes(layer, width):
    from edgeformer.spec import leaves, tensor_name

    return {
        tensor_name(path, suffix): shape
        for path, leaf in leaves(layer, width)
        for suffix, shape in leaf.tensors().items()
    }


def step_for(*layers, prefix=None):
    """A step over T tokens with what these attentions look up."""
    positions = np.arange(T)[None]
    step = Step(OPS, positions, positions, positions, prefix=prefix)
    for layer in layers:
        step.tables[layer.mask] = OPS.mask(layer.mask, positions, positions, None, prefix)
        position = getattr(layer, "position", None)
        if position is not None:
            step.tables[position] = handle(position)[0](step)
    return step


def x_of(seed=1, width=WIDTH):
    return np.random.default_rng(seed).standard_normal((1, T, width))


def softmax(scores):
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def hidden(scores, seen):
    return np.where(seen, scores, -np.inf)


CAUSAL = np.tril(np.ones((T, T), bool))


def by_heads(y, heads):
    return y.reshape(T, heads, -1).transpose(1, 0, 2)


def test_additive_attention():
    layer = AdditiveAttention(heads=3, head_dim=4)
    p, w = handle(layer)
    x = x_of()
    q, k, v = (by_heads(x[0] @ w[f"{n}.weight"].T, 3) for n in "qkv")
    vector, out = w["score"].reshape(3, 4), []
    for h in range(3):
        scores = np.array([[vector[h] @ np.tanh(q[h, i] + k[h, j]) for j in range(T)] for i in range(T)])
        out.append(softmax(hidden(scores, CAUSAL)) @ v[h])
    expected = np.concatenate(out, -1) @ w["o.weight"].T
    assert np.abs(p(x, step_for(layer))[0] - expected).max() < EXACT


@pytest.mark.parametrize("values", [True, False])
def test_shaw_attention(values):
    layer = ShawAttention(heads=3, head_dim=4, furthest=2, values=values, mask=Mask(causal=False))
    p, w = handle(layer)
    x = x_of()
    q, k, v = (by_heads(x[0] @ w[f"{n}.weight"].T, 3) for n in "qkv")
    out = []
    for h in range(3):
        rows = []
        for i in range(T):
            at = [max(-2, min(2, j - i)) + 2 for j in range(T)]
            keys = k[h] + w["key_distance.weight"][at]
            weights = softmax(q[h, i] @ keys.T / math.sqrt(4))
            rows.append(weights @ (v[h] + w["value_distance.weight"][at] if values else v[h]))
        out.append(np.stack(rows))
    expected = np.concatenate(out, -1) @ w["o.weight"].T
    assert np.abs(p(x, step_for(layer))[0] - expected).max() < EXACT


def gqa_by_hand(layer, w, x, rotate=lambda y: y, bias=None, seen=CAUSAL):
    """Grouped attention, head by head."""
    q, k, v = (x @ w[f"{n}.weight"].T for n in "qkv")
    q, k, v = by_heads(q, layer.heads), by_heads(k, layer.kv_heads), by_heads(v, layer.kv_heads)
    out = []
    for h in range(layer.heads):
        g = h // (layer.heads // layer.kv_heads)
        scores = rotate(q[h]) @ rotate(k[g]).T / math.sqrt(layer.head_dim)
        scores = hidden(scores if bias is None else scores + bias[h], seen)
        if layer.sinks:
            weights = softmax(np.concatenate([scores, np.full((T, 1), w["sinks"][h])], -1))[:, :-1]
        else:
            weights = softmax(scores)
        out.append(weights @ v[g])
    return np.concatenate(out, -1) @ w["o.weight"].T


MASKS = {
    "chunk": (Mask(chunk=4), lambda i, j: j <= i and i // 4 == j // 4),
    "chunk-window": (Mask(chunk=4, window=2), lambda i, j: j <= i and i // 4 == j // 4 and i - j < 2),
    "window": (Mask(window=3), lambda i, j: j <= i and i - j < 3),
    "both-ways": (Mask(causal=False, window=3), lambda i, j: abs(i - j) < 3),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(case):
    mask, rule = MASKS[case]
    layer = GQA(heads=4, kv_heads=2, head_dim=4, mask=mask)
    p, w = handle(layer)
    seen = np.array([[rule(i, j) for j in range(T)] for i in range(T)])
    assert np.abs(p(x_of(), step_for(layer))[0] - gqa_by_hand(layer, w, x_of()[0], seen=seen)).max() < EXACT


def test_sinks():
    layer = GQA(heads=4, kv_heads=2, head_dim=4, sinks=True)
    p, w = handle(layer)
    assert np.abs(p(x_of(), step_for(layer))[0] - gqa_by_hand(layer, w, x_of()[0])).max() < EXACT


def pairwise(theta, dim, pairs, positions=None):
    """Rotation pair by pair: (i, j) of the k-th pair turns by position · theta ** (−2k / dim)."""
    positions = np.arange(T) if positions is None else positions

    def rotate(y):
        out = y.copy()
        for k, (i, j) in enumerate(pairs):
            angle = positions * theta ** (-2 * k / dim)
            out[:, i] = y[:, i] * np.cos(angle) - y[:, j] * np.sin(angle)
            out[:, j] = y[:, j] * np.cos(angle) + y[:, i] * np.sin(angle)
        return out

    return rotate


ROPES = {
    "half-split": (Rope(dim=8, theta=50.0), 50.0, [(i, i + 4) for i in range(4)], 8),
    "partial": (Rope(dim=4, theta=50.0), 50.0, [(0, 2), (1, 3)], 4),
    "interleaved": (RopeInterleaved(dim=8, theta=50.0), 50.0, [(2 * i, 2 * i + 1) for i in range(4)], 8),
    "interleaved-partial": (RopeInterleaved(dim=4, theta=50.0), 50.0, [(0, 1), (2, 3)], 4),
    "ntk": (
        Rope(dim=8, theta=50.0, scaling=NtkScaling(factor=3)),
        50.0 * 3 ** (8 / 6),
        [(i, i + 4) for i in range(4)],
        8,
    ),
}


@pytest.mark.parametrize("case", ROPES)
def test_rotations(case):
    position, theta, pairs, dim = ROPES[case]
    layer = GQA(heads=4, kv_heads=2, head_dim=8, position=position)
    p, w = handle(layer)
    expected = gqa_by_hand(layer, w, x_of()[0], rotate=pairwise(theta, dim, pairs))
    assert np.abs(p(x_of(), step_for(layer))[0] - expected).max() < ANGLES * np.abs(expected).max()


def test_two_dimensional_rotation():
    """ChatGLM-6B's two counts: 0 1 2 3 3 3 .. and 0 0 0 0 1 2 .. for a prefix of four."""
    layer = GQA(heads=2, kv_heads=2, head_dim=8, position=Rope2D(dim=8, theta=50.0), mask=Mask(prefix=True))
    p, w = handle(layer)
    first, second = np.minimum(np.arange(T), 3), np.maximum(np.arange(T) - 3, 0)
    one = pairwise(50.0, 4, [(0, 4), (1, 5)], first)
    two = pairwise(50.0, 4, [(2, 6), (3, 7)], second)
    seen = CAUSAL | (np.arange(T) < 4)[None]
    expected = gqa_by_hand(layer, w, x_of()[0], rotate=lambda y: two(one(y)), seen=seen)
    found = p(x_of(), step_for(layer, prefix=np.array([4])))[0]
    assert np.abs(found - expected).max() < ANGLES * np.abs(expected).max()


def test_biases():
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]  # six heads, by hand from the paper's code
    assert np.allclose(Alibi(heads=6).slopes(), slopes, rtol=1e-7)
    layer = GQA(heads=6, kv_heads=3, head_dim=4, position=Alibi(heads=6))
    p, w = handle(layer)
    distance = np.arange(T)[None] - np.arange(T)[:, None]
    expected = gqa_by_hand(layer, w, x_of()[0], bias=[s * distance for s in slopes])
    assert np.abs(p(x_of(), step_for(layer))[0] - expected).max() < ANGLES


def test_t5_buckets():
    """By the definition: half of the buckets single distances, the rest logarithmic up to `furthest`."""
    for both in (True, False):
        found = RelativeBias(heads=1, buckets=12, furthest=40, bidirectional=both).lookup()
        for distance, bucket in zip(range(-40, 41), found, strict=True):
            count = 6 if both else 12
            away = abs(distance) if both else max(-distance, 0)
            offset = 6 if both and distance > 0 else 0
            exact = count // 2
            if away < exact:
                expected = away
            else:
                grown = exact + int(math.log(away / exact) / math.log(40 / exact) * (count - exact) + 1e-9)
                expected = min(grown, count - 1)
            assert bucket == offset + expected, (both, distance)


def test_sinusoids():
    for interleaved in (True, False):
        table = Sinusoidal(count=5, interleaved=interleaved).table(8)
        for position in range(5):
            for i in range(4):
                angle = position / 10_000 ** (2 * i / 8)
                sin, cos = (2 * i, 2 * i + 1) if interleaved else (i, 4 + i)
                assert abs(table[position, sin] - math.sin(angle)) < ANGLES
                assert abs(table[position, cos] - math.cos(angle)) < ANGLES


ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "identity": lambda x: x,
}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_networks(act):
    """Plain and gated, with and without biases."""
    function = np.vectorize(ACTIVATIONS[act])
    for bias in (True, False):
        for layer in (MLP(hidden=10, act=act, bias=bias), GLU(hidden=10, act=act, bias=bias)):
            p, w = handle(layer)

            def linear(name, y, w=w):
                return y @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

            x = x_of()[0]
            inner = function(linear("up" if isinstance(layer, MLP) else "gate", x))
            expected = linear("down", inner if isinstance(layer, MLP) else inner * linear("up", x))
            assert np.abs(p(x_of())[0] - expected).max() < 1e-9


@pytest.mark.parametrize("learned", [True, False])
def test_swish(learned):
    p, w = handle(MLP(hidden=10, act=Swish(beta=1.4, learned=learned)))
    beta = w["act.beta"] if learned else 1.4
    inner = x_of()[0] @ w["up.weight"].T + w["up.bias"]
    expected = (inner / (1 + np.exp(-beta * inner))) @ w["down.weight"].T + w["down.bias"]
    assert np.abs(p(x_of())[0] - expected).max() < EXACT


def test_norms():
    x = x_of()
    mean, centred = x.mean(-1, keepdims=True), x - x.mean(-1, keepdims=True)
    assert mean.shape == (1, T, 1)
    plain = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    root = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    for layer, formula in (
        (LayerNorm(), lambda w: plain * w["weight"] + w["bias"]),
        (LayerNorm(bias=False), lambda w: plain * w["weight"]),
        (LayerNorm(weight=False, bias=False), lambda w: plain),
        (RMSNorm(), lambda w: root * w["weight"]),
        (OffsetRMSNorm(), lambda w: root * (1 + w["weight"])),
    ):
        p, w = handle(layer)
        assert np.abs(p(x) - formula(w)).max() < EXACT
        total, normed = p.add(x * 0.25, x * 0.75)
        assert np.abs(total - x).max() < EXACT and np.abs(normed - formula(w)).max() < EXACT


def test_norms_of_queries_and_keys():
    x = x_of()
    p, w = handle(WholeNorm(norm=RMSNorm()))
    whole = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["weight"]
    assert np.abs(OPS.norm_heads(p, x, 3, 4) - whole).max() < EXACT
    p, w = handle(HeadsLayerNorm(bias=True))
    heads = x.reshape(T, 3, 4)
    centred = heads - heads.mean(-1, keepdims=True)
    each = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = each * w["weight"].reshape(3, 4) + w["bias"].reshape(3, 4)
    assert np.abs(OPS.norm_heads(p, x, 3, 4)[0] - expected.reshape(T, 12)).max() < EXACT


def test_deep_norm():
    """norm(alpha · x + f(x)), twice; and the initialisation's deviations by role."""
    alpha = DeepNormInit.alpha(6)
    assert abs(alpha - 12**0.25) < EXACT and abs(DeepNormInit.of(6).beta - 48**-0.25) < EXACT
    layer = PostNormBlock(
        attention=GQA(heads=3, kv_heads=3, head_dim=4), ffn=MLP(hidden=8), norm=LayerNorm(), residual_scale=alpha
    )
    p, _ = handle(layer)
    step, x = step_for(layer.attention), x_of()
    middle = p.attention_norm(alpha * x + p.attention(x, step))
    expected = p.ffn_norm(alpha * middle + p.ffn(middle))
    assert np.abs(p(x, None, step)[0] - expected).max() < EXACT
    torch = pytest.importorskip("torch")
    from component_cases import COMPONENTS

    from edgeformer.backends.torch.module import TorchModel

    torch.manual_seed(0)
    spec = COMPONENTS["block-deep-norm"]
    model = TorchModel(spec)
    beta = (8 * 2) ** -0.25
    for name, gain in (("q", 1.0), ("v", beta), ("o", beta)):
        weight = getattr(model.layers[0].attention, name).weight
        wanted = gain * math.sqrt(2 / sum(weight.shape))
        assert abs(weight.std().item() / wanted - 1) < 0.1, name


def test_borrowed_keys_and_values():
    """A layer that borrows is attention with its own queries to the first layer's keys and values."""
    shape = dict(heads=4, kv_heads=2, head_dim=8, position=Rope(dim=8))
    first, second = SharingGQA(**shape, shares="a"), BorrowedKV(**shape, source="a")
    (p1, w1), (p2, w2) = handle(first), handle(second, seed=5)
    step, x, y = step_for(first), x_of(), x_of(seed=2)
    plain, rotate = GQA(**shape), pairwise(10_000.0, 8, [(i, i + 4) for i in range(4)])
    expected = gqa_by_hand(plain, w1, x[0], rotate=rotate)
    assert np.abs(p1(x, step)[0] - expected).max() < ANGLES * np.abs(expected).max()
    q = by_heads(y[0] @ w2["q.weight"].T, 4)
    k, v = (by_heads(x[0] @ w1[f"{n}.weight"].T, 2) for n in "kv")
    out = [softmax(hidden(rotate(q[h]) @ rotate(k[h // 2]).T / math.sqrt(8), CAUSAL)) @ v[h // 2] for h in range(4)]
    expected = np.concatenate(out, -1) @ w2["o.weight"].T
    assert np.abs(p2(y, step)[0] - expected).max() < ANGLES * np.abs(expected).max()
    assert second.cache() == {} and "k" not in second.params(WIDTH)


def test_the_original_transformers_parts_fit_together():
    """Vaswani et al. 2017: post-norm blocks, sinusoids, scaled embeddings, in one model; every tensor has an influence."""
    from component_cases import decoder

    spec = decoder(
        GQA(heads=4, kv_heads=4, head_dim=8), MLP(hidden=24, act="relu"), LayerNorm(), PostNormBlock,
        final=None, positions=Sinusoidal(count=64), embed_scale=32**0.5,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s) * 0.3 for n, s in tensors(spec).items()}
    ids = rng.integers(0, 31, (1, 12))
    base = NumpyModel(spec, weights, np.float64)(ids)[0]["logits"]
    for name in weights:
        if not name.endswith("attention.k.bias"):
            moved = NumpyModel(spec, weights | {name: weights[name] * 1.5}, np.float64)(ids)[0]["logits"]
            assert np.abs(moved - base).max() > 1e-9, name
