"""llama.cpp's `phi3`: q, k and v as one matrix, gate and up as another."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    Architecture,
    first_attention,
    grouped_qkv,
    head_dim,
    llama_metadata,
    names_with,
    rms_epsilon,
    shape_config,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_factors, rope_of
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config
from edgeformer.models._names import Names, halves
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name."""
    a = first_attention(spec)
    qkv = grouped_qkv(a)
    return names_with() | qkv | halves("layers.{i}.ffn", "blk.{i}.ffn_up")


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return llama_metadata(spec)  # llama.cpp reads the size of sliding windows, but computes none


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    window = reader.optional("attention.sliding_window")
    config = shape_config(reader, "phi3") | rms_epsilon(reader)
    dim = head_dim(reader, config["hidden_size"], config["num_attention_heads"])
    turned = rope_of(reader, dim, share="partial_rotary_factor", longrope=True)
    return config | turned | {"sliding_window": window, "pad_token_id": None}


ARCHITECTURE = Architecture(names, metadata, config, rope_factors=rope_factors)
