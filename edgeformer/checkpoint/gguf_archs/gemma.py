"""llama.cpp's `gemma`: norms that scale by 1 + w, GeGLU, scaled embeddings."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    GELU_TABLE,
    Architecture,
    llama_config,
    llama_metadata,
    names_with,
    shifted_norms,
)
from edgeformer.models._inverse import Config
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = shifted_norms(names_with())


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return llama_metadata(spec)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "gemma") | {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
