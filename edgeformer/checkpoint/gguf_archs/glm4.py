"""llama.cpp's `glm4`: norms before and after, RoPE on part of each head by adjacent channels, gate and up fused."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    Architecture,
    first_attention,
    head_dim,
    head_keys,
    names_with,
    norm_keys,
    rms_epsilon,
    shape_config,
    shape_keys,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_keys, rope_of
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models._inverse import Config, gated_in, model_of
from edgeformer.models._names import Names, halves
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = names_with(attention_out_norm="post_attention_norm", ffn_out_norm="post_ffw_norm") | halves(
    "layers.{i}.ffn", "blk.{i}.ffn_up"
)


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    shape = shape_keys(spec, gated_in(model).hidden) | head_keys(a) | norm_keys(model.norm)
    return shape | rope_keys(a.position, a.head_dim, RopeInterleaved)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "glm4") | rms_epsilon(reader)
    dim = head_dim(reader, config["hidden_size"], config["num_attention_heads"])
    turned = rope_of(reader, dim, share="partial_rotary_factor")
    return config | turned | {"head_dim": dim, "attention_bias": reader.has("blk.0.attn_q.bias")}


ARCHITECTURE = Architecture(NAMES, metadata, config)
