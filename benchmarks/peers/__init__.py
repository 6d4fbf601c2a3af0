"""Peers as runtimes from outside the package: they open a folder written by ONNX Runtime GenAI's model builder.

benchmarks/decode.py puts them on the path with an entry point, the way any third party adds a runtime.
"""
