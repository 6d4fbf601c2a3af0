"""ONNX targets: each file defines `class Target(OnnxOps)`, a lowering of the vocabulary for one kind of runtime."""
