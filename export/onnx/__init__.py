"""ONNX export: graph, functions, weight storage; one lowering per file in `targets/`, native kernels in `kernels/`."""
