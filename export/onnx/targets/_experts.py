"""Bodies of `moe` that compute only the chosen experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeformer.exporters.onnx.control import loop
from edgeformer.exporters.onnx.graph_ops import CONTRIB, INT64, GraphOps, GraphTensor
from edgeformer.exporters.onnx.handles import QuantizedStack, StackedHandle
from edgeformer.weights.formats import GROUP


def sparse_experts(
    ops: GraphOps,
    x: GraphTensor,
    weights: GraphTensor,
    chosen: GraphTensor,
    gate: StackedHandle,
    up: StackedHandle,
    down: StackedHandle,
    *,
    act: str,
    count: int,
) -> GraphTensor:
    """NonZero selects each expert's tokens, ScatterND adds their outputs back; unrolled over the experts, so that runtimes can
    lay out each one's weights at load time."""
    flat, shares, picks = _rows(ops, x, weights, chosen)
    total = ops.f32(flat) * 0.0  # the CPU provider's ScatterND adds float32 only
    for expert in range(count):
        total = _with_expert(ops, total, flat, shares, picks, (gate, up, down), np.int64(expert), act)
    return _restored(ops, total, x)


def looped_experts(
    ops: GraphOps,
    x: GraphTensor,
    weights: GraphTensor,
    chosen: GraphTensor,
    gate: StackedHandle,
    up: StackedHandle,
    down: StackedHandle,
    *,
    act: str,
) -> GraphTensor:
    """`sparse_experts` as a Loop over the experts that occur: one expert's nodes, whatever their number."""
    flat, shares, picks = _rows(ops, x, weights, chosen)
    found = ops.node("Unique", [ops.reshape(picks, (-1,))], dims=(None,), dtype=INT64)

    def step(i: GraphTensor, total: GraphTensor) -> GraphTensor:
        expert = ops.node("Gather", [found, i], dims=(), axis=0)
        return _with_expert(ops, total, flat, shares, picks, (gate, up, down), expert, act)

    size = ops.node("Size", [found], dims=(), dtype=INT64)
    return _restored(ops, loop(ops, size, ops.f32(flat) * 0.0, step), x)


def fused_experts(
    ops: GraphOps,
    x: GraphTensor,
    weights: GraphTensor,
    chosen: GraphTensor,
    gate: QuantizedStack,
    up: QuantizedStack,
    down: QuantizedStack,
    *,
    count: int,
    level: int,
) -> GraphTensor:
    """SwiGLU experts as ONNX Runtime's QMoE.

    * Its first product wants rows of gate and up in turn; codes are interleaved in the graph, which the runtime folds.
    * It chooses experts itself, by a softmax of the scores of the best `k`. The logarithms of the weights that the layer has
      computed give these weights divided by their sum, which multiplies the result.
    """
    flat, shares, picks = _rows(ops, x, weights, chosen)
    least = {ir.DataType.FLOAT: 1e-37, ir.DataType.FLOAT16: 6e-8}[x.dtype]
    scores = ops.unary("Log", ops.node("Max", [shares, ops.constant(np.asarray(least, x.dtype.numpy()))]))
    hits = ops.equal(ops.expand_dims(picks, 2), ops.arange(count, picks))  # [N, k, E]
    placed = ops.sum(ops.cast(hits, x) * ops.expand_dims(scores, 2), 1)
    taken = ops.sum(ops.cast(hits, x), 1)
    router = placed + (taken - 1.0) * 6e4
    codes, scales = (
        ops.reshape(ops.concat([ops.expand_dims(t, 2) for t in pair], 2), (0, 2 * pair[0].size(1), -1))
        for pair in (
            [_bytes(ops, h) for h in (gate, up)],
            [h.tensors[1] for h in (gate, up)],
        )
    )
    operands = [flat, router, codes, scales, None, _bytes(ops, down), down.tensors[1], None]
    rounding: dict[str, Any] = {}
    if level and gate.stored.bits == 4:  # at 8 bits it always rounds
        rounding["accuracy_level"] = level
    y = ops.node(
        "QMoE",
        operands,
        dims=flat.dims,
        domain=CONTRIB,
        k=shares.size(1),
        normalize_routing_weights=1,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        expert_weight_bits=gate.stored.bits,
        block_size=GROUP,
        **rounding,
    )
    return _restored(ops, y * ops.sum(shares, -1, keep=True), x)


def _rows(ops: GraphOps, x: GraphTensor, *of_tokens: GraphTensor) -> tuple[GraphTensor, ...]:
    """Tensors [B, T, n] as [B · T, n]."""
    return tuple(ops.reshape(t, (-1, t.size(2))) for t in (x, *of_tokens))


def _restored(ops: GraphOps, rows: GraphTensor, x: GraphTensor) -> GraphTensor:
    """[B · T, D] in the shape and dtype of `x`."""
    return ops.reshape(ops.cast(rows, x), (ops.shape(x, 0), -1, x.size(2)))


def _bytes(ops: GraphOps, stack: QuantizedStack) -> GraphTensor:
    """A stack's codes as [count, outputs, inputs · bits / 8]."""
    codes = stack.tensors[0]
    return ops.reshape(codes, (0, 0, codes.size(2) * codes.size(3)))


def _with_expert(
    ops: GraphOps,
    total: GraphTensor,
    flat: GraphTensor,
    shares: GraphTensor,
    picks: GraphTensor,
    stacks: tuple[StackedHandle, ...],
    expert: Any,
    act: str,
) -> GraphTensor:
    """float32 [N, D]: `total` and one expert's weighted outputs for the tokens that chose it."""
    gate, up, down = (stack.one(expert) for stack in stacks)
    hit = ops.cast(ops.equal(picks, expert), flat)
    found = ops.node("NonZero", [ops.sum(hit, -1)], dims=(1, None), dtype=INT64)
    rows = ops.reshape(found, (-1,))
    h, share = ops.take(flat, rows), ops.take(ops.sum(shares * hit, -1), rows)
    y = down(ops.activate(act, gate(h)) * up(h))
    y = ops.f32(y * ops.expand_dims(share, 1))
    return ops.node("ScatterND", [total, ops.expand_dims(rows, 1), y], dims=total.dims, reduction="add")
