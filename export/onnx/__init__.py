"""ONNX export: graph, functions, weight storage; one lowering per file in `targets/`, `decoder.py` for the native library."""
