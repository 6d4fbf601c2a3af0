"""llama.cpp's `olmo2`: norms on the outputs of attention and feed-forward network."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import Architecture, llama_config, llama_metadata, names_with
from edgeformer.models._inverse import Config
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return llama_metadata(spec)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "olmo2", own_head_dim=False)


ARCHITECTURE = Architecture(
    names_with(attention_norm="post_attention_norm", ffn_norm="post_ffw_norm"), metadata, config
)
