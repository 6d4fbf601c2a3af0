"""BLOOM (BigScience 2022, arXiv 2211.05100): ALiBi, a norm after the embedding."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.alibi import Alibi
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mlp import MLP
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, epsilon, model_of, of_class
from edgeformer.models._names import Names, by_group, named
from edgeformer.spec import Init, Model

PREFIXES = ("transformer.", "")
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """A BLOOM decoder."""
    config.expect(apply_residual_connection_post_layernorm=False, slow_but_exact=False, n_inner=None)
    config.ignore(
        "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add"
    )
    config.ignore("skip_bias_add_qkv", "unk_token_id", "num_key_value_heads")
    width = config.size("hidden_size", config.size("n_embed", 64))
    config.expect(n_embed=width)
    heads = config.size("n_head", config.size("num_attention_heads", 8))
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    attention = GQA(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        position=Alibi(heads=heads),
        bias=True,
        output_bias=True,
        dropout=config.number("attention_dropout", 0.0),
    )
    ffn = MLP(hidden=4 * width, act="gelu_tanh")
    block = Block(attention=attention, ffn=ffn, norm=norm, dropout=config.number("hidden_dropout", 0.0))
    return Decoder(
        vocab=config.size("vocab_size", 250_880),
        width=width,
        context=config.size("seq_length", 2048),
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=(block,) * config.layers("n_layer", config.layers("num_hidden_layers", 2)),
        norm=norm,
        embed_norm=norm,
        tied=config.flag("tie_word_embeddings", True),
    )


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    attention = attention_of(spec.blocks[0], GQA)
    return (
        named(
            {"embed": "word_embeddings", "embed_norm": "word_embeddings_layernorm", "norm": "ln_f", "head": "lm_head"}
        )
        | named(
            {
                "attention_norm": "input_layernorm",
                "ffn_norm": "post_attention_layernorm",
                "attention.o": "self_attention.dense",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.down": "mlp.dense_4h_to_h",
            },
            "layers.{i}.",
            "h.{i}.",
        )
        | by_group("layers.{i}.attention", "h.{i}.self_attention.query_key_value", 1, attention.head_dim)
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block = block_of(model, Block)
    a = attention_in(block)
    return (
        of_class("bloom", "BloomForCausalLM")
        | epsilon(model.norm, "layer_norm_epsilon")
        | {
            "hidden_size": model.width,
            "n_head": a.heads,
            "n_layer": len(model.blocks),
            "vocab_size": model.vocab,
            "seq_length": model.context,
            "attention_dropout": a.dropout,
            "hidden_dropout": block.dropout,
            "initializer_range": model.init.std,
            "tie_word_embeddings": model.tied,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, tied=TIED)
