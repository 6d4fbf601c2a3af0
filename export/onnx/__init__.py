"""ONNX: the graph, its functions, the storage of weights; one lowering per file in `targets/`, native kernels in `kernels/`."""
