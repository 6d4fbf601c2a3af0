"""Exporters. `onnx.py` is the only one so far; `targets/` holds one lowering per file."""
