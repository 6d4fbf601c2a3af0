"""Control flow in a graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgeformer.exporters.onnx.graph_ops import INT64, GraphOps, GraphTensor


def loop(
    ops: GraphOps,
    count: GraphTensor,
    carried: GraphTensor,
    body: Callable[[GraphTensor, GraphTensor], GraphTensor],
) -> GraphTensor:
    """Run `body(i, carried)` for i = 0 .. count - 1; each run's result is the next one's `carried`."""
    name = f"loop_{len(ops.nodes)}"
    described = {"i": (INT64, ()), "going": (ir.DataType.BOOL, ()), "carried": (carried.dtype, carried.dims)}
    inputs = [
        GraphTensor(ops, ir.Value(name=f"{name}/{part}", type=ir.TensorType(t), shape=ir.Shape(d)), t, d)
        for part, (t, d) in described.items()
    ]
    i, going, before = inputs
    with ops.subgraph() as nodes:
        outputs = [ops.node("Identity", [going]), body(i, before)]
        for out in outputs:
            out.value.type, out.value.shape = ir.TensorType(out.dtype), ir.Shape(out.dims)
    graph = ir.Graph([x.value for x in inputs], [x.value for x in outputs], nodes=nodes, name=name)
    return ops.node("Loop", [count, None, carried], dims=carried.dims, dtype=carried.dtype, body=graph)
