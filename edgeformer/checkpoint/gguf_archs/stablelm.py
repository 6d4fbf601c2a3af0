"""llama.cpp's `stablelm`: LayerNorm with a gated feed-forward network, RoPE on part of each head."""

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
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.models._inverse import Config, gated_in, model_of
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name: a norm's weights are a row per head."""
    return {**LLAMA_NAMES, **row_per_head(first_attention(spec))}


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    shape = shape_keys(spec, gated_in(model).hidden) | norm_keys(model.norm) | rope_keys(a.position, a.head_dim)
    return shape | {"use_parallel_residual": isinstance(model.blocks[0], ParallelBlock)}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "stablelm")
    turned = rope_of(reader, even_heads(reader, config), share="partial_rotary_factor")
    reader.ignore("use_parallel_residual")
    return (
        config
        | layer_epsilon(reader, "layer_norm_eps")
        | turned
        | {
            "tie_word_embeddings": False,
            "use_qkv_bias": reader.has("blk.0.attn_q.bias"),
            "qk_layernorm": reader.has("blk.0.attn_q_norm.weight"),
            "use_parallel_residual": not reader.has("blk.0.ffn_norm.weight"),
        }
    )


ARCHITECTURE = Architecture(names, metadata, config)
