"""llama.cpp's `gptneox`: Pythia's parallel or sequential blocks, RoPE on part of each head."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    FUSED_QKV,
    GELU_TABLE,
    Architecture,
    even_heads,
    layer_epsilon,
    names_with,
    norm_keys,
    shape_config,
    shape_keys,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_keys, rope_of
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mlp import MLP
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.models._inverse import Config, attention_in, ffn_in, model_of, part
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = names_with() | FUSED_QKV


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    a, ffn = attention_in(model.blocks[0]), part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu")
    return (
        shape_keys(spec, ffn.hidden)
        | norm_keys(model.norm)
        | rope_keys(a.position, a.head_dim)
        | {"use_parallel_residual": isinstance(model.blocks[0], ParallelBlock)}
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "gpt_neox")
    dim = even_heads(reader, config)
    del config["num_key_value_heads"]
    turned = rope_of(reader, dim, share="rotary_pct")
    return (
        config
        | layer_epsilon(reader, "layer_norm_eps")
        | turned
        | {
            "rotary_emb_base": turned["rope_theta"],
            "hidden_act": "gelu_new",
            "use_parallel_residual": reader.flag("use_parallel_residual", True),
            "tie_word_embeddings": False,
        }
    )


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
