"""`portable`: ai.onnx operators of opset 23 only, for any runtime: OpenVINO, ONNX's own reference evaluator."""

from __future__ import annotations

from edgeformer.exporters.onnx.functions import FunctionOps


class Target(FunctionOps):
    """Every fused op's default body, inlined: not every runtime supports functions."""

    writes_functions = False
