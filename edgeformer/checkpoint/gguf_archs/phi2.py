"""llama.cpp's `phi2`: attention and feed-forward network in parallel, RoPE on part of each head."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    GELU_TABLE,
    LLAMA_NAMES,
    Architecture,
    even_heads,
    layer_epsilon,
    plain_metadata,
    shape_config,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_of
from edgeformer.models._inverse import Config
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return plain_metadata(spec)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "phi")
    turned = rope_of(reader, even_heads(reader, config), share="partial_rotary_factor")
    return (
        config
        | layer_epsilon(reader, "layer_norm_eps")
        | turned
        | {"hidden_act": "gelu_new", "tie_word_embeddings": False}
    )


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config, compute=GELU_TABLE)
