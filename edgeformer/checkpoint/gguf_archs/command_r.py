"""llama.cpp's `command-r`: attention and feed-forward network in parallel after one norm, RoPE on adjacent channels."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    LLAMA_NAMES,
    Architecture,
    even_heads,
    first_attention,
    layer_epsilon,
    norm_keys,
    row_per_head,
    shape_config,
    shape_keys,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_keys, rope_of
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models._inverse import Config, gated_in, model_of
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

_NORMALISED = 64
"""llama.cpp normalises queries and keys in models of at least so many layers."""


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name: a norm's weights are a row per head."""
    return {**LLAMA_NAMES, **row_per_head(first_attention(spec))}


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    shape = shape_keys(spec, gated_in(model).hidden) | norm_keys(model.norm)
    return shape | rope_keys(a.position, a.head_dim, RopeInterleaved) | {"logit_scale": float(model.logit_scale)}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "cohere")
    turned = rope_of(reader, even_heads(reader, config))
    return (
        config
        | layer_epsilon(reader, "layer_norm_eps")
        | turned
        | {
            "tie_word_embeddings": True,
            "attention_bias": reader.has("blk.0.attn_q.bias"),
            "use_qk_norm": reader.has("blk.0.attn_q_norm.weight") and config["num_hidden_layers"] >= _NORMALISED,
            "logit_scale": reader.number("logit_scale"),
        }
    )


ARCHITECTURE = Architecture(names, metadata, config, called="command-r")
