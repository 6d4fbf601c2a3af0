"""`cuda`: ONNX Runtime's CUDA provider. Its GroupQueryAttention computes in half precision only: export with fp16 or q4f16."""

from __future__ import annotations

import onnx_ir as ir

from edgeformer.exporters.onnx.targets._onnxruntime import OnnxRuntimeTarget
from edgeformer.exporters.onnx.targets._sparse_experts import sparse_experts


class Target(OnnxRuntimeTarget):
    """Never run on a GPU by this project: the operators are those that ONNX Runtime's documentation lists for CUDA."""

    attention_types = (ir.DataType.FLOAT16,)
    moe_body = sparse_experts
