"""ONNX Runtime GenAI on its own builder's export, threads set explicitly."""

from __future__ import annotations

from pathlib import Path

from edgeformer.checkpoint import bundle
from edgeformer.inference.runtime import Options, Session
from edgeformer.runtimes import ort_genai


class Runtime(ort_genai.Runtime):
    """The same session as `ort_genai`, on a folder that is no artefact of ours (decode.py adds its spec.json)."""

    def open(self, source: Path, options: Options) -> Session:  # type: ignore[override]
        return ort_genai.GenaiSession(source, options, bundle.read_spec(source))
