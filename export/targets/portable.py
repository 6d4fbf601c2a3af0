"""`portable`: ai.onnx operators only, for any runtime that reads ONNX opset 23."""

from __future__ import annotations

from edgeformer.export.functions import FunctionOps


class Target(FunctionOps):
    """Every fused op is a function whose body is its default definition."""
