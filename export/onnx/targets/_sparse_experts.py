"""A sparse mixture of experts: NonZero selects each expert's tokens, ScatterND adds their outputs back."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeformer.exporters.onnx.graph_ops import INT64, GraphOps, GraphTensor


def sparse_experts(
    ops: GraphOps,
    x: GraphTensor,
    weights: GraphTensor,
    chosen: GraphTensor,
    gate: Any,
    up: Any,
    down: Any,
    *,
    act: str,
    count: int,
) -> GraphTensor:
    """The body of `moe` for runtimes with a fast NonZero; unrolled over the experts, with data-dependent shapes."""
    width = x.dims[-1]
    assert width is not None
    flat = ops.reshape(x, (-1, width))
    shares, picks = (ops.reshape(t, (-1, t.dims[-1])) for t in (weights, chosen))

    def one(handle: Any, expert: int) -> GraphTensor:
        stack = handle.tensors[0]
        return ops.node("Gather", [stack, np.int64(expert)], dims=stack.dims[1:], axis=0)

    total = ops.f32(flat) * 0.0  # the CPU provider's ScatterND adds float32 only
    for expert in range(count):
        hit = ops.cast(ops.equal(picks, expert), flat)
        found = ops.node("NonZero", [ops.sum(hit, -1)], dims=(1, None), dtype=INT64)
        rows = ops.reshape(found, (-1,))
        h, share = ops.take(flat, rows), ops.take(ops.sum(shares * hit, -1), rows)
        y = ops.activate(act, ops.linear(h, one(gate, expert))) * ops.linear(h, one(up, expert))
        y = ops.f32(ops.linear(y, one(down, expert)) * ops.expand_dims(share, 1))
        total = ops.node("ScatterND", [total, ops.expand_dims(rows, 1), y], dims=flat.dims, reduction="add")
    return ops.reshape(ops.cast(total, x), (ops.shape(x, 0), -1, width))
