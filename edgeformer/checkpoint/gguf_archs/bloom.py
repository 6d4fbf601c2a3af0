"""llama.cpp's `bloom`: ALiBi, a norm after the embedding."""

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
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mlp import MLP
from edgeformer.models._inverse import Config, ffn_in, model_of, part
from edgeformer.models._names import Names, named
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = names_with() | FUSED_QKV | named({"embed_norm": "token_embd_norm"})


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    ffn = part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu_tanh")
    return shape_keys(spec, ffn.hidden) | norm_keys(model.norm)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    reader.ignore("vocab_size", "attention.head_count_kv", "feed_forward_length")
    return {
        "model_type": "bloom",
        "n_layer": reader.size("block_count"),
        "seq_length": reader.size("context_length"),
        "hidden_size": reader.size("embedding_length"),
        "n_head": reader.size("attention.head_count"),
        "layer_norm_epsilon": reader.number("attention.layer_norm_epsilon"),
        "vocab_size": reader.rows("token_embd.weight"),
        "tie_word_embeddings": not reader.has("output.weight"),
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
