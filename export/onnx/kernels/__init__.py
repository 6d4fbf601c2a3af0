"""The native op library for ONNX Runtime: built on demand from the sources in this folder, and cached.

Every fused op also has a function body in the model, so the library is optional; where it is loaded, its kernels replace the
bodies. Building it needs no ONNX Runtime headers (`ort_abi.h`).
"""

from __future__ import annotations

from pathlib import Path

from edgeformer.backends.native.build import NativeLibrary

LIBRARY = NativeLibrary(Path(__file__).parent, "edgeformer_ops", "EDGEFORMER_OPS", "models use their function bodies")
