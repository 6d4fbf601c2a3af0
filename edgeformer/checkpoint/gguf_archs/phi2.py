"""llama.cpp's `phi2`: attention and feed-forward network in parallel, RoPE on part of each head."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    GELU_TABLE,
    LLAMA_NAMES,
    Architecture,
    first_attention,
    layer_epsilon,
    norm_keys,
    rope_keys,
    rope_of,
    shape_config,
    shape_keys,
)
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mlp import MLP
from edgeformer.models._inverse import Config, ffn_in, model_of, part
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    ffn = part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu_tanh")
    return shape_keys(spec, ffn.hidden) | norm_keys(model.norm) | rope_keys(a.position, a.head_dim)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "phi")
    turned = rope_of(reader, config["hidden_size"] // config["num_attention_heads"], share="partial_rotary_factor")
    return (
        config
        | layer_epsilon(reader, "layer_norm_eps")
        | turned
        | {"hidden_act": "gelu_new", "tie_word_embeddings": False}
    )


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config, compute=GELU_TABLE)
