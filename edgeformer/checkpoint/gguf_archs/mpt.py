"""llama.cpp's `mpt`: ALiBi, norms and linear maps without biases, clipped queries, keys and values."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    FUSED_QKV,
    GELU_TABLE,
    Architecture,
    first_attention,
    names_with,
    norm_keys,
    shape_keys,
)
from edgeformer.errors import CheckpointError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mlp import MLP
from edgeformer.models._inverse import Config, ffn_in, model_of, part
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = names_with() | FUSED_QKV


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    ffn = part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu")
    clip = {} if a.clip is None else {"attention.clamp_kqv": float(a.clip)}
    return shape_keys(spec, ffn.hidden) | norm_keys(model.norm) | clip | {"attention.max_alibi_bias": 8.0}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    reader.ignore("vocab_size", "attention.head_count_kv", "feed_forward_length")
    if (bias := reader.number("attention.max_alibi_bias", 0.0)) != 8.0:
        raise CheckpointError(f"{reader.file}: attention.max_alibi_bias is {bias}; only 8 is supported")
    return {
        "model_type": "mpt",
        "n_layers": reader.size("block_count"),
        "max_seq_len": reader.size("context_length"),
        "d_model": reader.size("embedding_length"),
        "n_heads": reader.size("attention.head_count"),
        "layer_norm_epsilon": reader.number("attention.layer_norm_epsilon"),
        "vocab_size": reader.rows("token_embd.weight"),
        "attn_config": {"clip_qkv": reader.number("attention.clamp_kqv", 0.0) or None},
        "tie_word_embeddings": not reader.has("output.weight"),
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
