"""llama.cpp's `gpt2`: learned positions, LayerNorm, biases everywhere, GELU's tanh approximation."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    FUSED_QKV,
    GELU_TABLE,
    Architecture,
    names_with,
    norm_keys,
    shape_keys,
)
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mlp import MLP
from edgeformer.models._inverse import Config, block_of, model_of, part
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = names_with() | FUSED_QKV | {"position_embed.table.weight": "position_embd.weight"}


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    ffn = part(block_of(model, Block).ffn, MLP, hidden=4 * model.width, act="gelu_tanh")
    data = shape_keys(spec, ffn.hidden) | norm_keys(model.norm)
    return {key: value for key, value in data.items() if key != "attention.head_count_kv"}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return gpt2_like(reader, "gpt2")


def gpt2_like(reader: Reader, model_type: str) -> Config:
    """The config of GPT-2 and StarCoder."""
    reader.ignore("vocab_size", "attention.head_count_kv")
    return {
        "model_type": model_type,
        "n_layer": reader.size("block_count"),
        "n_positions": reader.size("context_length"),
        "n_embd": reader.size("embedding_length"),
        "n_inner": reader.size("feed_forward_length"),
        "n_head": reader.size("attention.head_count"),
        "layer_norm_epsilon": reader.number("attention.layer_norm_epsilon"),
        "vocab_size": reader.rows("token_embd.weight"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": not reader.has("output.weight"),
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
