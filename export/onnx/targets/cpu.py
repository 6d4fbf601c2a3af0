"""`cpu`: ONNX Runtime's CPU execution provider. `FusedMatMul(transB)` takes weights as stored and prepacks them like a MatMul."""

from __future__ import annotations

from typing import ClassVar

from edgeformer.exporters.onnx.graph_ops import CONTRIB, FLOAT
from edgeformer.exporters.onnx.targets._onnxruntime import OnnxRuntimeTarget
from edgeformer.exporters.onnx.targets._sparse_experts import sparse_experts


class Target(OnnxRuntimeTarget):
    """Matrix products with stored weights, without a transpose in the graph."""

    one_node = True
    moe_body = sparse_experts
    usual_levels: ClassVar[dict[int, int]] = {
        8: 4
    }  # at level 0 the CPU provider dequantizes all 8-bit weights in every call

    def linear(self, x, weight):
        if x.dtype != FLOAT:
            return super().linear(x, weight)  # FusedMatMul's CPU kernel is float32 only
        dims = (*x.dims[:-1], weight.dims[0])
        return self.node("FusedMatMul", [x, weight], dims=dims, domain=CONTRIB, transB=1)
