"""llama.cpp's `smollm3`: Llama without RoPE in every fourth layer. It rotates adjacent channels."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import LLAMA_NAMES, Architecture, llama_config, llama_metadata
from edgeformer.checkpoint.gguf_archs._rope import rope_factors
from edgeformer.models._inverse import Config
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return llama_metadata(spec)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "smollm3") | {"no_rope_layer_interval": 4, "attention_bias": False, "mlp_bias": False}


ARCHITECTURE = Architecture(
    LLAMA_NAMES, metadata, config, rope_factors=rope_factors, interleaved=("attention.q", "attention.k")
)
