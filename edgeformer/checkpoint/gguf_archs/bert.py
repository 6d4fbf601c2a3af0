"""llama.cpp's `bert`: BERT, RoBERTa, XLM-R, CamemBERT and DistilBERT, as encoders of text."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import GELU_TABLE, Architecture, layer_epsilon
from edgeformer.checkpoint.gguf_archs._encoders import (
    encoder_config,
    encoder_keys,
    encoder_notes,
    pooling_of,
    without_pooler,
)
from edgeformer.errors import CheckpointError
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.learned import Learned
from edgeformer.layers.mlp import MLP
from edgeformer.models._inverse import Config, ffn_in, model_of, part
from edgeformer.models._names import named
from edgeformer.spec import Model
from edgeformer.weights.binding import NameMap
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import Below

_DISTILBERT_EPS = 1e-12
_TOP = {"embed": "token_embd", "embed_norm": "token_embd_norm", "type_embed": "token_types"}
_BLOCK = {
    **{f"attention.{n}": f"attn_{n}" for n in "qkv"},
    "attention.o": "attn_output",
    "attention_norm": "attn_output_norm",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
    "ffn_norm": "layer_output_norm",
}


def names(spec: Encoder) -> NameMap:
    """Canonical name -> GGUF name. RoBERTa's positions begin below rows that are never read, which the file doesn't have."""
    table = "position_embd.weight"
    unread = spec.positions.offset if isinstance(spec.positions, Learned) else 0
    positions: NameMap = {"position_embed.table.weight": Below(table, unread) if unread else table}
    return named(_TOP) | named(_BLOCK, "layers.{i}.", "blk.{i}.") | positions


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Encoder)
    return encoder_keys(spec, part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu").hidden)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file.

    Raises:
        CheckpointError: no token types, and another epsilon than DistilBERT's.
    """
    config = encoder_config(reader) | layer_epsilon(reader, "layer_norm_eps")
    if reader.has("token_types.weight"):
        types = {"type_vocab_size": reader.rows("token_types.weight")}
        return config | types | {"model_type": "bert", "hidden_act": "gelu_pytorch_tanh"}
    if config["layer_norm_eps"] != _DISTILBERT_EPS:
        raise CheckpointError(
            f"{reader.file} has no token types, as DistilBERT, but attention.layer_norm_epsilon is {config['layer_norm_eps']};"
            f" DistilBERT's is {_DISTILBERT_EPS}"
        )
    return {
        "model_type": "distilbert",
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "hidden_dim": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "activation": "gelu_pytorch_tanh",
    }


def around(spec: Model) -> dict[str, Any]:
    """How many token types there are: at least one, or llama.cpp doesn't load the file."""
    return {"tokenizer.ggml.token_type_count": max(model_of(spec, Encoder).token_types, 1)}


ARCHITECTURE = Architecture(
    names,
    metadata,
    config,
    computed=without_pooler,
    pooling=pooling_of,
    lacks=encoder_notes,
    around=around,
    compute=GELU_TABLE,
)
