"""MPT (MosaicML 2023): ALiBi, norms and linear maps without biases, clipped queries, keys and values."""

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
from edgeformer.models._inverse import attention_in, epsilon, model_of, of_class, whole
from edgeformer.models._names import Names, named, side_by_side
from edgeformer.spec import Init, Model

PREFIXES = ("transformer.", "")
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """An MPT decoder. Its attention has a config object of its own, attn_config."""
    config.expect(logit_scale=None, no_bias=True, expansion_ratio=4, fc_type="torch")
    config.ignore(
        "embedding_fraction", "init_device", "init_config", "learned_pos_emb", "norm_type", "verbose", "emb_pdrop"
    )
    config.ignore("tokenizer_name", "use_pad_tok_in_ffn")  # from the original code
    inner = HfConfig({"model_type": "mpt", **(config.take("attn_config", None) or {})}, f"{config.where} (attn_config)")
    inner.expect(attn_type="multihead_attention", prefix_lm=False, qk_ln=False, alibi=True, attn_uses_sequence_id=False)
    inner.expect(alibi_bias_max=8)  # transformers has the key but doesn't read it
    inner.ignore("attn_impl")
    width, heads = config.size("d_model", 2048), config.size("n_heads", 16)
    dropout = inner.number("attn_pdrop", 0.0)
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5), bias=False)
    attention = GQA(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        position=Alibi(heads=heads),
        scale=inner.optional_number("softmax_scale"),
        clip=inner.optional_number("clip_qkv") or None,
        dropout=dropout,
    )
    inner.done()
    network = HfConfig({"model_type": "mpt", **(config.take("ffn_config", None) or {})}, f"{config.where} (ffn_config)")
    network.expect(ffn_type="mptmlp", fc_type="torch")
    network.done()
    config.number("resid_pdrop", 0.0)
    block = Block(attention=attention, ffn=MLP(hidden=4 * width, act="gelu", bias=False), norm=norm, dropout=dropout)
    return Decoder(
        vocab=config.size("vocab_size", 50_368),
        width=width,
        context=config.size("max_seq_len", 2048),
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=(block,) * config.layers("n_layers", 24),
        norm=norm,
        tied=config.flag("tie_word_embeddings", True),
    )


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    attention = attention_of(spec.blocks[0], GQA)
    size = attention.heads * attention.head_dim
    return (
        named({"embed": "wte", "norm": "norm_f", "head": "lm_head"})
        | named(
            {
                "attention_norm": "norm_1",
                "ffn_norm": "norm_2",
                "attention.o": "attn.out_proj",
                "ffn.up": "ffn.up_proj",
                "ffn.down": "ffn.down_proj",
            },
            "layers.{i}.",
            "blocks.{i}.",
        )
        | side_by_side("layers.{i}.attention", "blocks.{i}.attn.Wqkv", {"q": size, "k": size, "v": size})
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a = attention_in(model.blocks[0])
    inner = {"alibi": True, "attn_pdrop": whole(a.dropout), "clip_qkv": a.clip, "softmax_scale": a.scale}
    return (
        of_class("mpt", "MptForCausalLM")
        | epsilon(model.norm, "layer_norm_epsilon")
        | {
            "d_model": model.width,
            "n_heads": a.heads,
            "n_layers": len(model.blocks),
            "vocab_size": model.vocab,
            "max_seq_len": model.context,
            "attn_config": inner,
            "no_bias": True,
            "initializer_range": model.init.std,
            "tie_word_embeddings": model.tied,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, tied=TIED)
