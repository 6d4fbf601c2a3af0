"""`cuda`: ONNX Runtime's CUDA provider. Its GroupQueryAttention computes in half precision only: export with fp16 or q4f16."""

from __future__ import annotations

import onnx_ir as ir

from edgeformer.export.targets._onnxruntime import OnnxRuntimeTarget


class Target(OnnxRuntimeTarget):
    """Never run on a GPU by this project: the operators are those that ONNX Runtime's documentation lists for CUDA."""

    attention_types = (ir.DataType.FLOAT16,)
