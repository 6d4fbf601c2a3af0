"""ONNX Runtime: what its fused operators don't support, found by lowering the spec as the export does."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgeformer.errors import EdgeformerError
from edgeformer.exporters.onnx.graph import build
from edgeformer.spec import Model, tensors

TARGET = "onnxruntime (target cpu)"


def remarks(spec: Model) -> Iterator[str]:
    """The notes, or the error, of lowering the spec."""
    try:
        built = build(
            spec, dict.fromkeys(tensors(spec), ir.DataType.FLOAT), target="cpu", context=min(spec.context, 64)
        )
    except EdgeformerError as e:
        yield str(e)
        return
    for text, count in built.notes.items():
        yield f"{text} ({count} layers)"
