"""ONNX targets: each file defines `class Target(FunctionOps)`, a lowering of the op vocabulary for one kind of runtime."""
