"""llama.cpp's `chatglm`: ChatGLM2, ChatGLM3, GLM-4-9B and GLM-Edge; RoPE by adjacent channels, on half of each head or all of it.

They are read as transformers' `glm`, which is the same architecture.
"""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    Architecture,
    even_heads,
    first_attention,
    grouped_qkv,
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


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name."""
    return names_with() | grouped_qkv(first_attention(spec)) | halves("layers.{i}.ffn", "blk.{i}.ffn_up")


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    return (
        shape_keys(spec, gated_in(model).hidden)
        | norm_keys(model.norm)
        | rope_keys(a.position, a.head_dim, RopeInterleaved)
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "glm") | rms_epsilon(reader)
    dim = even_heads(reader, config)
    reader.ignore("attention.key_length", "attention.value_length")
    turned = rope_of(reader, dim, share="partial_rotary_factor")
    bias = any(reader.has(f"blk.0.attn_{n}.bias") for n in ("qkv", "q"))
    return config | turned | {"head_dim": dim, "attention_bias": bias, "pad_token_id": None}


def separate_names(spec: Decoder) -> list[Names]:
    """The names of files made from transformers' folders: q, k and v apart."""
    return [names_with() | halves("layers.{i}.ffn", "blk.{i}.ffn_up")]


ARCHITECTURE = Architecture(names, metadata, config, spellings=separate_names)
