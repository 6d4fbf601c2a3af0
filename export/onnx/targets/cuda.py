"""`cuda`: ONNX Runtime's CUDA execution provider. Its GroupQueryAttention supports half precision only: use fp16 or q4f16."""

from __future__ import annotations

import onnx_ir as ir

from edgeformer.exporters.onnx.targets._experts import sparse_experts
from edgeformer.exporters.onnx.targets._onnxruntime import OnnxRuntimeTarget


class Target(OnnxRuntimeTarget):
    """The operators that ONNX Runtime's documentation lists for CUDA; this project has never run it on a GPU."""

    attention_types = (ir.DataType.FLOAT16,)
    plain_experts = sparse_experts
