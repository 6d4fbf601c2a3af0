"""`portable`: ai.onnx operators of opset 23 and nothing else, for any runtime: OpenVINO, ONNX's own reference evaluator."""

from __future__ import annotations

from edgeformer.exporters.onnx.functions import FunctionOps


class Target(FunctionOps):
    """Every fused op's default definition, written in place: not every runtime reads functions."""

    writes_functions = False
