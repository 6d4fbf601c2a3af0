"""T2: whole layers on every back end: MoE, MLA and cross-attention beside the plain ones, so that the vocabulary never
has to be bent for them later. Oracle: the numpy back end in float64, and for the layers' own maths a plain formula here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tolerances
from support import random_ids, run_cached, sessions

from edgeformer.backends.numpy import Handle, NumpyModel, NumpyOps
from edgeformer.checkpoint import saving
from edgeformer.checkpoint.loading import load
from edgeformer.exporters.onnx.graph import target_class
from edgeformer.exporters.onnx.graph_ops import CONTRIB, DOMAIN, OPSET, GraphTensor
from edgeformer.exporters.onnx.handles import GraphHandle, Initializers
from edgeformer.layers.block import Block
from edgeformer.layers.cross_attention import CrossAttention
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mla import MLA
from edgeformer.layers.mlp import MLP
from edgeformer.layers.moe import MoE
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.ops.step import Step
from edgeformer.spec import tensors

NORM, LN = RMSNorm(eps=1e-5), LayerNorm(bias=False)
ROPE = Rope(dim=8)
GQA_LAYER = GQA(heads=4, kv_heads=2, head_dim=8, position=ROPE)
MLA_LAYER = MLA(heads=4, nope=12, rope=8, v_dim=10, rank=16, position=ROPE, norm=NORM)
BLOCKS = {
    "moe": Block(attention=GQA_LAYER, ffn=MoE(experts=4, chosen=2, hidden=20), norm=NORM),
    "moe-raw-weights": Block(attention=GQA_LAYER, ffn=MoE(experts=5, chosen=3, hidden=8, renormalize=False), norm=NORM),
    "mla": Block(attention=MLA_LAYER, ffn=GLU(hidden=24), norm=NORM),
    "mla-moe": Block(attention=MLA_LAYER, ffn=MoE(experts=3, chosen=1, hidden=16), norm=NORM),
    "parallel": ParallelBlock(attention=GQA_LAYER, ffn=MLP(hidden=40, act="gelu_tanh"), norm=LN),
    "parallel-shared-norm": ParallelBlock(attention=GQA_LAYER, ffn=GLU(hidden=24), norm=LN, shared_norm=True),
    "softcap": Block(attention=replace(GQA_LAYER, softcap=3.0), ffn=GLU(hidden=24), norm=NORM),
    "no-position": Block(attention=replace(GQA_LAYER, position=None), ffn=GLU(hidden=24), norm=NORM),
    "partial-rotation": Block(attention=replace(GQA_LAYER, head_dim=16), ffn=GLU(hidden=24), norm=NORM),
}


def random_weights(layer, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in tensors(layer).items()}


@pytest.mark.parametrize("case", BLOCKS)
def test_decoder_of_two_blocks(case, tmp_path):
    """Cached and left-padded, in every back end, against float64."""
    pytest.importorskip("torch")
    spec = Decoder(vocab=31, width=32, context=64, blocks=(BLOCKS[case],) * 2, norm=NORM, tied=False)
    weights = random_weights(spec)
    saving.save(spec, weights, tmp_path / "model")
    ids = random_ids(31, 2, 24)
    valid = np.ones_like(ids)
    valid[1, :5] = 0
    expected = NumpyModel(spec, weights, np.float64)(ids, valid)[0]["logits"]
    for name, session in sessions(load(tmp_path / "model"), tmp_path, batch=2, capacity=32).items():
        logits = run_cached(session, ids, valid, 14)
        real = valid.astype(bool)
        assert np.abs(logits - expected)[real].max() <= tolerances.LAYER, name


class _Whole:
    """A layer with its memory, as one call of (x, memory): cross-attention outside any model."""

    layer = CrossAttention(heads=4, head_dim=8, bias=True)


def _cross_numpy(weights, x, memory, valid, dtype):
    ops = NumpyOps()
    layer = Handle(ops, _Whole.layer, 32, lambda n: weights[n].astype(dtype))
    positions = np.arange(x.shape[1])[None]
    step = Step(
        ops, positions, np.arange(memory.shape[1])[None], positions, memory=memory.astype(dtype), memory_valid=valid
    )
    return layer(x.astype(dtype), step)


def _cross_torch(weights, x, memory, valid):
    import torch

    from edgeformer.backends.torch.module import Module, TorchOps

    ops = TorchOps()
    layer = Module(_Whole.layer, 32, ops)
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    t = torch.from_numpy
    queries = torch.arange(x.shape[1])[None]
    step = Step(
        ops,
        queries,
        torch.arange(memory.shape[1])[None],
        queries,
        memory=t(memory),
        memory_valid=t(valid),
    )
    return layer(t(x), step).detach().numpy()


def _cross_onnx(weights, x, memory, valid, target):
    ops = target_class(target)(ir.DataType.FLOAT)
    initializers = Initializers(ops, dict.fromkeys(weights, ir.DataType.FLOAT))
    layer = GraphHandle(ops, _Whole.layer, 32, initializers)
    feed = {"x": x, "memory": memory, "valid": valid}
    graph_inputs = {
        name: GraphTensor(
            ops,
            ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(a.dtype)), shape=ir.Shape(a.shape)),
            ir.DataType.from_numpy(a.dtype),
            (None, None, *a.shape[2:]),
        )
        for name, a in feed.items()
    }
    keys, queries = np.arange(memory.shape[1])[None], np.arange(x.shape[1])[None]
    step = Step(
        ops,
        ops.constant(queries),
        ops.constant(keys),
        ops.constant(queries),
        memory=graph_inputs["memory"],
        memory_valid=graph_inputs["valid"],
    )
    out = layer(graph_inputs["x"], step)
    out.value.type = ir.TensorType(ir.DataType.FLOAT)
    for name, value in initializers.values.items():
        value.const_value = ir.tensor(weights[name], name=name)
    graph = ir.Graph(
        [t.value for t in graph_inputs.values()],
        [out.value],
        nodes=ops.nodes,
        initializers=list(initializers.values.values()),
        opset_imports={"": OPSET, DOMAIN: 1, CONTRIB: 1},
        name="cross",
    )
    model = ir.Model(graph, ir_version=10, functions=[f for f, _ in ops.functions.values()])
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, feed)[0]


def test_cross_attention_against_its_formula():
    """softmax(q kᵀ / √d) v over the encoder's real tokens, written out head by head in float64."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in _shapes(_Whole.layer, 32).items()}
    x, memory = (rng.standard_normal((2, n, 32)).astype(np.float32) for n in (3, 7))
    valid = np.ones((2, 7), bool)
    valid[1, 4:] = False
    w = {n: a.astype(np.float64) for n, a in weights.items()}
    expected = np.zeros((2, 3, 32))
    for b in range(2):
        heads = []
        q, k, v = (
            source[b].astype(np.float64) @ w[f"{n}.weight"].T + w[f"{n}.bias"]
            for n, source in (("q", x), ("k", memory), ("v", memory))
        )
        for h in range(4):
            cut = slice(8 * h, 8 * h + 8)
            scores = q[:, cut] @ k[valid[b]][:, cut].T / np.sqrt(8)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(p / p.sum(-1, keepdims=True) @ v[valid[b]][:, cut])
        expected[b] = np.concatenate(heads, -1) @ w["o.weight"].T + w["o.bias"]
    scale = np.abs(expected).max()
    results = {
        "numpy": _cross_numpy(weights, x, memory, valid, np.float32),
        "torch": _cross_torch(weights, x, memory, valid),
        "onnx-cpu": _cross_onnx(weights, x, memory, valid, "cpu"),
        "onnx-portable": _cross_onnx(weights, x, memory, valid, "portable"),
    }
    for name, ours in results.items():
        assert np.abs(ours - expected).max() <= tolerances.LAYER * scale, name


def _shapes(layer, width):
    return {
        f"{name}.{suffix}": shape
        for name, declaration in layer.params(width).items()
        for suffix, shape in declaration.tensors().items()
    }


def test_moe_against_its_formula():
    """Each token through its two best experts alone, by loops."""
    layer = MoE(experts=4, chosen=2, hidden=6)
    rng = np.random.default_rng(2)
    weights = {n: rng.standard_normal(s) for n, s in _shapes(layer, 8).items()}
    x = rng.standard_normal((1, 5, 8))
    ours = Handle(NumpyOps(), layer, 8, weights.__getitem__)(x)
    for t in range(5):
        scores = weights["router.weight"] @ x[0, t]
        p = np.exp(scores) / np.exp(scores).sum()
        best = np.argsort(-p)[:2]
        expected = np.zeros(8)
        for e in best:
            gate, up = (weights[f"{n}.weight"][e] @ x[0, t] for n in ("gate", "up"))
            expected += p[e] / p[best].sum() * (weights["down.weight"][e] @ (gate / (1 + np.exp(-gate)) * up))
        assert np.abs(ours[0, t] - expected).max() < 1e-12


def test_mla_against_its_formula():
    """The unabsorbed form: keys and values of every head expanded from the latent."""
    layer = MLA_LAYER
    rng = np.random.default_rng(3)
    spec = Decoder(
        vocab=11, width=32, context=32, blocks=(Block(attention=layer, ffn=GLU(hidden=8), norm=NORM),), norm=NORM
    )
    weights = {n: rng.standard_normal(s) for n, s in tensors(spec).items()}
    prefix = "layers.0.attention."
    own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    ops, t = NumpyOps(), 6
    handle = Handle(ops, layer, 32, own.__getitem__)
    x, positions = rng.standard_normal((1, t, 32)), np.arange(t)[None]
    step = Step(ops, positions, positions, positions)
    rotary = Handle(ops, layer.position, 0, own.__getitem__)(step)
    step = replace(step, tables={layer.position: rotary, layer.mask: ops.mask(layer.mask, positions, positions, None)})
    ours = handle(x, step)

    angles = np.arange(t)[:, None] * layer.position.frequencies()
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(y):  # [T, 8]
        a, b = y[:, :4], y[:, 4:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    down = x[0] @ own["kv_down.weight"].T
    latent, shared = down[:, :16], rotate(down[:, 16:])
    latent = latent / np.sqrt((latent**2).mean(-1, keepdims=True) + 1e-5) * own["norm.weight"]
    q = (x[0] @ own["q.weight"].T).reshape(t, 4, 20)
    heads = []
    for h in range(4):
        k = np.concatenate([latent @ own["k_up.weight"][h], shared], -1)  # k_up[h]: [rank, nope]
        query = np.concatenate([q[:, h, :12], rotate(q[:, h, 12:])], -1)
        scores = query @ k.T / np.sqrt(20)
        scores[np.triu_indices(t, 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ (latent @ own["v_up.weight"][h].T))
    expected = np.concatenate(heads, -1) @ own["o.weight"].T
    assert np.abs(ours[0] - expected).max() <= 1e-5 * np.abs(expected).max()  # rotary angles are float32
