"""`webgpu`: ONNX Runtime's WebGPU execution provider (the plug-in on desktops, onnxruntime-web in browsers).

FusedMatMul has no WebGPU kernel, so weights are transposed in the graph; the runtime folds the transpose at load time.
"""

from __future__ import annotations

from edgeformer.exporters.onnx.targets._onnxruntime import OnnxRuntimeTarget


class Target(OnnxRuntimeTarget):
    """Operators that have both a WebGPU and a CPU kernel."""
