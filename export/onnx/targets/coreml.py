"""`coreml`: ONNX Runtime's Core ML execution provider, ML programs.

Where there is a choice, it uses only operators of the published list (ONNX Runtime's coreml_supported_mlprogram_ops.md): masks
are computed in floats instead of booleans, rows are looked up by GatherND, heads repeated by Tile. Operators missing from the
list (CumSum, Slice with dynamic bounds) run on the CPU. This project has never run it on Apple hardware; the share of nodes in
the manifest is an estimate from the list.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.graph_ops import FLOAT

SUPPORTED = frozenset((
    "Add", "ArgMax", "Cast", "Ceil", "Clip", "Concat", "Cos", "Div", "Elu", "Erf", "Exp", "GatherND", "Gelu", "Gemm",
    "HardSigmoid", "Identity", "LayerNormalization", "LeakyRelu", "MatMul", "Max", "Mul", "PRelu", "Pow", "Range",
    "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Round", "Shape", "Sigmoid", "Sin", "Slice",
    "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
"""Operators of the published list that this exporter can emit."""


class Target(FunctionOps):
    """Plain operators that the Core ML provider supports."""

    precisions = ("fp32", "fp16", "bf16")

    def rsqrt(self, x):
        return 1.0 / self.unary("Sqrt", x)  # its Reciprocal adds an epsilon of 1e-4

    def take(self, table, ids):
        return self.node(
            "GatherND", [table, self.expand_dims(ids, ids.ndim)], dims=ids.dims + table.dims[1:], batch_dims=0
        )

    def repeat_heads(self, x, count):
        b, g, s, d = x.dims
        tiled = self.node("Tile", [self.expand_dims(x, 2), self.ints(1, 1, count, 1, 1)], dims=(b, g, count, s, d))
        return self.reshape(tiled, (0, g * count, -1, d))

    # booleans as 0.0 and 1.0; positions are integers below 2**24, which float32 represents exactly

    def boolean(self, x):
        return self.cast_to(x, FLOAT)

    def less(self, a, b):
        return self.node("Clip", [self._number(b) - self._number(a), np.float32(0), np.float32(1)])

    def equal(self, a, b):
        a, b = self._number(a), self._number(b)
        return 1.0 - self.node("Clip", [self.node("Max", [a - b, b - a]), np.float32(0), np.float32(1)])

    def _number(self, x):
        return self.cast_to(x, FLOAT) if hasattr(x, "dtype") and hasattr(x, "value") else float(x)

    def binary(self, op, a, b, dtype=None):
        return super().binary("Mul" if op == "And" else op, a, b, None if dtype == ir.DataType.BOOL else dtype)

    def where(self, condition, a, b):
        return condition * (float(a) - float(b)) + float(b)

    @classmethod
    def estimate(cls, model: ir.Model) -> dict[str, Any]:
        """How many nodes the list covers, with functions inlined and constants folded: an estimate, not a measurement."""
        inlined = passes.InlinePass()(model.clone()).model
        fixed = {v.name for v in inlined.graph.initializers.values()}
        claimed, left = 0, Counter()
        for node in inlined.graph:
            if node.op_type == "Constant" or all(v is None or v.name in fixed for v in node.inputs):
                fixed.update(v.name for v in node.outputs)
                continue
            if node.domain == "" and node.op_type in SUPPORTED and _constant_bounds(node, fixed):
                claimed += 1
            else:
                left[node.op_type] += 1
        total = claimed + sum(left.values())
        return {"what": "static, by the published op list", "nodes": total, "claimed": claimed, "left": dict(left)}


def _constant_bounds(node: ir.Node, fixed: set[str | None]) -> bool:
    """Whether Slice's bounds and Split's sizes are constant, as the provider requires."""
    return node.op_type not in ("Slice", "Split") or all(v is None or v.name in fixed for v in node.inputs[1:])
