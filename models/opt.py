"""OPT (Zhang et al. 2022, arXiv 2205.01068) and Galactica: learned positions, ReLU; the 350M model has post-norm blocks."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mlp import MLP
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, model_of, of_class, part
from edgeformer.models._names import named
from edgeformer.models._shape import hf_activation
from edgeformer.spec import Init, Model

NAMES = named(
    {
        "embed": "embed_tokens",
        "position_embed.table": "embed_positions",
        "project_in": "project_in",
        "project_out": "project_out",
        "norm": "final_layer_norm",
        "head": "lm_head",
    }
) | named(
    {
        "attention_norm": "self_attn_layer_norm",
        "ffn_norm": "final_layer_norm",
        **{f"attention.{n}": f"self_attn.{n}_proj" for n in "qkv"},
        "attention.o": "self_attn.out_proj",
        "ffn.up": "fc1",
        "ffn.down": "fc2",
    },
    "layers.{i}.",
    "layers.{i}.",
)
PREFIXES = ("model.decoder.", "decoder.", "")
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """An OPT decoder."""
    config.expect(layerdrop=0.0, learned_embeddings=True, scale_embeddings=False)
    config.ignore("activation_dropout", "badwordsids", "newlinemode")  # the latter two are KoboldAI's
    width, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    context, affine = config.size("max_position_embeddings", 2048), config.flag("layer_norm_elementwise_affine", True)
    bias, before = config.flag("enable_bias", True), config.flag("do_layer_norm_before", True)
    norm, dropout = LayerNorm(weight=affine, bias=affine), config.number("dropout", 0.1)
    attention = GQA(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    act = config.activation("activation_function", "relu")
    ffn = MLP(hidden=config.size("ffn_dim", 3072), act=act, bias=bias)
    kind = Block if before else PostNormBlock
    block = kind(attention=attention, ffn=ffn, norm=norm, dropout=dropout)
    narrow = config.optional_size("word_embed_proj_dim") or width
    removed = config.flag("_remove_final_layer_norm", False)
    return Decoder(
        vocab=config.size("vocab_size", 50_272),
        width=width,
        context=context,
        init=Init(std=config.number("init_std", 0.02)),
        blocks=(block,) * config.layers("num_hidden_layers", 12),
        norm=norm if before and not removed else None,
        positions=Learned(count=context, offset=2),
        embed_width=None if narrow == width else narrow,
        tied=config.flag("tie_word_embeddings", True),
        dropout=0.0,
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    before = not isinstance(model.blocks[0], PostNormBlock)
    block = block_of(model, Block if before else PostNormBlock)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="relu")
    norm = part(block.norm, LayerNorm, weight=True)
    return of_class("opt", "OPTForCausalLM") | {
        "hidden_size": model.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": a.heads,
        "ffn_dim": ffn.hidden,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "word_embed_proj_dim": model.embed_width or model.width,
        "activation_function": hf_activation(ffn.act),
        "enable_bias": a.bias,
        "layer_norm_elementwise_affine": norm.weight,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and model.norm is None,
        "dropout": block.dropout,
        "attention_dropout": a.dropout,
        "init_std": model.init.std,
        "tie_word_embeddings": model.tied,
    }


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, tied=TIED)
