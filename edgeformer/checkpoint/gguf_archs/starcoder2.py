"""llama.cpp's `starcoder2`: LayerNorm, a plain feed-forward network with biases, RoPE."""

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
    config = shape_config(reader, "starcoder2")
    turned = rope_of(reader, even_heads(reader, config))
    more = {"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": None}
    return config | layer_epsilon(reader, "norm_epsilon") | turned | more


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config, compute=GELU_TABLE)
