"""T1: every primitive and fused op of each back end against numpy in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tolerances

from edgeformer.backends.numpy import LinearHandle as NumpyLinear
from edgeformer.backends.numpy import NumpyOps, StackedHandle
from edgeformer.exporters.onnx import handles
from edgeformer.exporters.onnx.graph import target_class
from edgeformer.exporters.onnx.graph_ops import CONTRIB, DOMAIN, OPSET, GraphTensor
from edgeformer.layers.mask import Mask

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape)


X = floats(2, 5, 8)
IDS = RNG.integers(0, 7, (2, 5))
POSITIONS = np.tile(np.arange(5), (2, 1))
VALID = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]])  # every query of a window of 2 sees a real key

# name -> (arguments, call); arguments are arrays, or ("linear" | "stacked", weight, bias)
CASES = {
    "reshape": ([X], lambda o, x: o.reshape(x, (0, -1, 2, 4))),
    "permute": ([X], lambda o, x: o.permute(x, (2, 0, 1))),
    "expand_dims": ([X], lambda o, x: o.expand_dims(x, 1)),
    "concat": ([X, floats(2, 3, 8)], lambda o, x, y: o.concat([x, y], 1)),
    "split": ([X], lambda o, x: o.split(x, (3, 5), -1)[1]),
    "last": ([X], lambda o, x: o.last(x, 2)),
    "last-all": ([X], lambda o, x: o.last(x, 0) * 2.0),
    "repeat_heads": ([floats(2, 3, 5, 4)], lambda o, x: o.repeat_heads(x, 2)),
    "mean": ([X], lambda o, x: o.mean(x)),
    "sum": ([X], lambda o, x: o.sum(x, 1)),
    "sum-keep": ([X], lambda o, x: o.sum(x, -1, keep=True)),
    "largest": ([IDS], lambda o, x: o.largest(x)),
    "cumsum": ([VALID], lambda o, x: o.cumsum(x)),
    "rsqrt": ([np.abs(X) + 0.1], lambda o, x: o.rsqrt(x)),
    "exp": ([X], lambda o, x: o.exp(x)),
    "sin": ([X], lambda o, x: o.sin(x)),
    "cos": ([X], lambda o, x: o.cos(x)),
    "erf": ([X], lambda o, x: o.erf(x)),
    "softmax": ([X], lambda o, x: o.softmax(x)),
    "take": ([floats(7, 3), IDS], lambda o, t, i: o.take(t, i)),
    "topk-values": ([X], lambda o, x: o.topk(x, 3)[0]),
    "topk-ids": ([X], lambda o, x: o.topk(x, 3)[1]),
    "where": ([IDS], lambda o, i: o.where(o.less(i, i * 0 + 3), 0.5, -2.0)),
    "equal": ([IDS], lambda o, i: o.where(o.equal(i, i * 0 + 3), 1.0, 0.0)),
    "and": ([IDS], lambda o, i: o.where(o.less(i, i * 0 + 5) & o.less(i * 0 + 1, i), 1.0, 0.0)),
    "clip": ([IDS], lambda o, i: o.clip(i, 2, 4)),
    "arange": ([IDS], lambda o, i: o.arange(5, i) + i),
    "boolean": ([VALID], lambda o, v: o.where(o.boolean(v), 1.0, 0.0)),
    "arithmetic": ([X], lambda o, x: (1.0 - x) * 2.0 / (3.0 + x * x) - (-x) + 1.0 / (x * x + 1.0)),
    "matmul": ([X, floats(2, 8, 3)], lambda o, x, y: x @ y),
    **{
        f"act_{name}": ([X * 3], lambda o, x, name=name: o.activate(name, x))
        for name in ("relu", "relu2", "silu", "gelu", "gelu_tanh", "quick_gelu", "sigmoid", "tanh")
    },
    "rms_norm": ([X, floats(8)], lambda o, x, w: o.rms_norm(x, w, eps=1e-5)),
    "add_rms_norm-sum": ([X, X * 0.3, floats(8)], lambda o, x, d, w: o.add_rms_norm(x, d, w, eps=1e-5)[0]),
    "add_rms_norm": ([X, X * 0.3, floats(8)], lambda o, x, d, w: o.add_rms_norm(x, d, w, eps=1e-5)[1]),
    "layer_norm": ([X, floats(8), floats(8)], lambda o, x, w, b: o.layer_norm(x, w, b, eps=1e-5)),
    "layer_norm-no-bias": ([X, floats(8)], lambda o, x, w: o.layer_norm(x, w, None, eps=1e-5)),
    "add_layer_norm": ([X, X * 0.3, floats(8), floats(8)], lambda o, x, d, w, b: o.add_layer_norm(x, d, w, b, eps=1e-5)[1]),
    "rotate": (
        [floats(2, 3, 5, 8), floats(2, 1, 5, 4), floats(2, 1, 5, 4)],
        lambda o, x, c, s: o.rotate(x, c, s, dim=8, rotated=8),
    ),
    "rotate-partial": (
        [floats(2, 3, 5, 8), floats(2, 1, 5, 2), floats(2, 1, 5, 2)],
        lambda o, x, c, s: o.rotate(x, c, s, dim=8, rotated=4),
    ),
    "linears": (
        [X, ("linear", floats(6, 8), floats(6)), ("linear", floats(4, 8), floats(4))],
        lambda o, x, a, b: o.concat(list(o.linears(x, a, b)), -1),
    ),
    "glu_ffn": (
        [X, ("linear", floats(12, 8), None), ("linear", floats(12, 8), None), ("linear", floats(8, 12), None)],
        lambda o, x, g, u, d: o.glu_ffn(x, g, u, d, act="silu"),
    ),
    "glu_ffn-bias": (
        [X, *(("linear", floats(*s), floats(s[0])) for s in ((12, 8), (12, 8), (8, 12)))],
        lambda o, x, g, u, d: o.glu_ffn(x, g, u, d, act="gelu"),
    ),
    "moe": (
        [X, floats(2, 5, 2), RNG.integers(0, 4, (2, 5, 2)),
         *(("stacked", floats(*s)) for s in ((4, 6, 8), (4, 6, 8), (4, 8, 6)))],
        lambda o, x, w, c, g, u, d: o.moe(x, w, c, g, u, d, act="silu", count=4),
    ),
    "attention-causal": (
        [floats(2, 4, 5, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6), POSITIONS],
        lambda o, q, k, v, p: o.attention(q, k, v, o.mask(Mask(), p, p, None), None, groups=2, scale=0.3),
    ),
    "attention-window-padded": (
        [floats(2, 4, 5, 8), floats(2, 4, 5, 8), floats(2, 4, 5, 8), POSITIONS, VALID],
        lambda o, q, k, v, p, m: o.attention(
            q, k, v, o.mask(Mask(window=2), p, p, o.boolean(m)), None, groups=1, scale=0.3
        ),
    ),
    "attention-softcap-bias": (
        [floats(2, 4, 5, 8), floats(2, 1, 5, 8), floats(2, 1, 5, 8), floats(1, 4, 5, 5), POSITIONS],
        lambda o, q, k, v, b, p: o.attention(q, k, v, o.mask(Mask(), p, p, None), b, groups=4, scale=1.0, softcap=2.0),
    ),
    "attention-two-sided-window": (
        [floats(2, 2, 5, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 8), POSITIONS],
        lambda o, q, k, v, p: o.attention(
            q, k, v, o.mask(Mask(causal=False, window=2), p, p, None), None, groups=1, scale=0.3
        ),
    ),
}  # fmt: skip


def cast(x, floating):
    return x.astype(floating if x.dtype.kind == "f" else np.int64)


def run_numpy(case, floating):
    arguments, call = CASES[case]
    made = []
    for a in arguments:
        if isinstance(a, tuple):
            weight = cast(a[1], floating)
            bias = None if len(a) < 3 or a[2] is None else cast(a[2], floating)
            made.append(NumpyLinear(weight, bias) if a[0] == "linear" else StackedHandle(weight))
        else:
            made.append(cast(a, floating))
    return call(NumpyOps(), *made)


def run_torch(case):
    torch = pytest.importorskip("torch")
    from edgeformer.backends.torch import module as backend

    arguments, call = CASES[case]
    made = []
    for a in arguments:
        if isinstance(a, tuple):
            weight = torch.from_numpy(cast(a[1], np.float32))
            if a[0] == "linear":
                has_bias = len(a) > 2 and a[2] is not None
                handle = backend._Linear(weight.shape[1], weight.shape[0], has_bias)
                if has_bias:
                    handle.bias.data = torch.from_numpy(cast(a[2], np.float32))
            else:
                handle = backend.Stacked(weight.shape[0], weight.shape[2], weight.shape[1])
            handle.weight.data = weight
            made.append(handle)
        else:
            made.append(torch.from_numpy(cast(a, np.float32)))
    with torch.no_grad():
        return call(backend.TorchOps(), *made).numpy()


def run_mlx(case):
    mx = pytest.importorskip("mlx.core")
    import mlx.nn as nn

    from edgeformer.backends.mlx.ops import MlxOps
    from edgeformer.backends.mlx.stacked import Stacked

    def made(a):
        if not isinstance(a, tuple):
            return mx.array(cast(a, np.float32))
        weight = mx.array(a[1], mx.float32)
        if a[0] == "linear":
            handle = nn.Linear(weight.shape[1], weight.shape[0], len(a) > 2 and a[2] is not None)
            if "bias" in handle:
                handle.bias = mx.array(a[2], mx.float32)
        else:
            handle = Stacked(weight.shape[0], weight.shape[2], weight.shape[1])
        handle.weight = weight
        return handle

    arguments, call = CASES[case]
    return np.array(call(MlxOps(), *map(made, arguments)))


def run_onnx(case, target, inline):
    arguments, call = CASES[case]
    ops = target_class(target)(ir.DataType.FLOAT, inline=inline)
    values, feed = [], {}

    def add(array):
        array = cast(array, np.float32)
        dtype = ir.DataType.from_numpy(array.dtype)
        name = f"input{len(values)}"
        shape = [f"{name}_{i}" if i < 2 and array.ndim > 2 else s for i, s in enumerate(array.shape)]
        values.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
        feed[name] = array
        return GraphTensor(ops, values[-1], dtype, tuple(s if isinstance(s, int) else None for s in shape))

    def weight(array):
        tensor = add(array)
        tensor.dims = array.shape
        return tensor

    made = []
    for a in arguments:
        if isinstance(a, tuple):
            tensors = [weight(x) for x in a[1:] if x is not None]
            made.append(
                handles.LinearHandle(ops, tensors, "") if a[0] == "linear" else handles.StackedHandle(ops, tensors)
            )
        elif case.startswith(("repeat_heads", "rotate", "attention")) and a.ndim == 4:
            tensor = add(a)  # heads and widths are static in every graph
            tensor.dims = (None, a.shape[1], None, a.shape[3])
            made.append(tensor)
        else:
            made.append(weight(a) if a.ndim == 1 or case == "take" else add(a))
    out = call(ops, *made)
    out.value.type = ir.TensorType(out.dtype)
    out.value.name = "out"
    graph = ir.Graph(values, [out.value], nodes=ops.nodes, opset_imports={"": OPSET, DOMAIN: 1, CONTRIB: 1}, name="t")
    model = ir.Model(graph, ir_version=10, functions=[f for f, _ in ops.functions.values()])
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings)
    known = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in feed.items() if k in known})[0]


RUNS = {
    "numpy": lambda case: run_numpy(case, np.float32),
    "torch": run_torch,
    "mlx": run_mlx,
    "onnx-cpu": lambda case: run_onnx(case, "cpu", False),
    "onnx-cpu-inline": lambda case: run_onnx(case, "cpu", True),
    "onnx-portable": lambda case: run_onnx(case, "portable", False),
}


@pytest.mark.parametrize("backend", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_op(case, backend):
    expected = run_numpy(case, np.float64)
    ours = RUNS[backend](case)
    assert ours.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(ours - expected).max() <= tolerances.OP * scale
