"""`cpu`: ONNX Runtime's CPU execution provider. `FusedMatMul(transB)` takes weights as stored and prepacks them like a MatMul."""

from __future__ import annotations

from typing import ClassVar

from edgeformer.exporters.onnx.graph_ops import CONTRIB, FLOAT
from edgeformer.exporters.onnx.handles import QuantizedStack
from edgeformer.exporters.onnx.targets._experts import fused_experts, sparse_experts
from edgeformer.exporters.onnx.targets._onnxruntime import OnnxRuntimeTarget


class Target(OnnxRuntimeTarget):
    """Matrix products with stored weights, without a transpose in the graph."""

    one_node = True
    windowed_caches = True
    plain_experts = sparse_experts
    usual_levels: ClassVar[dict[int, int]] = {
        8: 4
    }  # at level 0 the CPU provider dequantizes all 8-bit weights in every call

    def moe_body(self, x, weights, chosen, gate, up, down, *, act, count):
        stacks = [h for h in (gate, up, down) if isinstance(h, QuantizedStack)]
        formats = {h.stored for h in stacks}
        if act == "silu" and len(stacks) == 3 and len(formats) == 1:
            bits = formats.pop().bits
            level = self.level_of(bits, x.dtype, self.accuracy_level)
            if bits == 4 or level:  # QMoE rounds activations with 8-bit weights, whatever the level
                return fused_experts(self, x, weights, chosen, gate, up, down, count=count, level=level)
        return super().moe_body(x, weights, chosen, gate, up, down, act=act, count=count)

    def linear(self, x, weight):
        if x.dtype != FLOAT:
            return super().linear(x, weight)  # FusedMatMul's CPU kernel is float32 only
        dims = (*x.dims[:-1], weight.dims[0])
        return self.node("FusedMatMul", [x, weight], dims=dims, domain=CONTRIB, transB=1)
