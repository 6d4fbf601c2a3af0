"""llama.cpp's `qwen3`: RMSNorm on each query and key head, no biases."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import LLAMA_NAMES, Architecture, llama_config, llama_metadata
from edgeformer.models._inverse import Config
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return llama_metadata(spec)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "qwen3")


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config)
