"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms before and after, soft caps, sliding windows in every second layer."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.offset_rms_norm import OffsetRMSNorm
from edgeformer.layers.sandwich_block import SandwichBlock
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    epsilon,
    gated_in,
    heads,
    listed_windows,
    model_of,
    network,
    of_class,
    reciprocal,
    rotary,
    sizes,
    solved,
    whole,
)
from edgeformer.models._names import named
from edgeformer.models._rope import rope
from edgeformer.models._windows import windows_by_type
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, windowed
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]

NAMES = llama.NAMES | named(
    {
        "attention_out_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_out_norm": "post_feedforward_layernorm",
    },
    "layers.{i}.",
    "layers.{i}.",
)


def spec(config: HfConfig) -> Decoder:
    """A Gemma 2 decoder."""
    config.expect(use_bidirectional_attention=None)
    config.expect(sliding_window_size=config.size("sliding_window", 4096))  # the same value under two keys
    config.ignore("cache_implementation", "hidden_act")  # transformers reads hidden_activation
    head_dim = config.size("head_dim", 256)
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 8192))
    count = config.layers("num_hidden_layers", 26)
    attention = GQA(position=position, **gemma_attention(config, head_dim, default_heads=(8, 4)))
    types = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(count)]
    windows = windows_by_type(config, count, config.size("sliding_window", 4096), types)
    return gemma_decoder(config, windowed(attention, windows), context, softcap=30.0)


def gemma_attention(
    config: HfConfig, head_dim: int, default_heads: tuple[int, int], softcap: float | None = 50.0
) -> dict:
    """The attention fields that Gemma 2 and 3 share."""
    bias, heads = config.flag("attention_bias", False), config.size("num_attention_heads", default_heads[0])
    return dict(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", default_heads[1]) or heads,
        head_dim=head_dim,
        bias=bias,
        output_bias=bias,
        scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        softcap=config.optional_number("attn_logit_softcapping", softcap),
        dropout=config.number("attention_dropout", 0.0),
    )


def gemma_decoder(config: HfConfig, attentions: list[GQA], context: int, softcap: float | None) -> Decoder:
    """The decoder of Gemma 2 and 3; `softcap` is the default for the logits."""
    norm = OffsetRMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    act = config.activation("hidden_activation", "gelu_pytorch_tanh")
    ffn = GLU(hidden=config.size("intermediate_size", 9216), act=act)
    blocks = [SandwichBlock(attention=a, ffn=ffn, norm=norm) for a in attentions]
    cap = config.optional_number("final_logit_softcapping", softcap)
    scale = config.size("hidden_size") ** 0.5
    return decoder(config, blocks, norm, context, tied=True, embed_scale=scale, logit_softcap=cap)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    shape = gemma_config(spec, "gemma2", "Gemma2ForCausalLM")
    model = model_of(spec, Decoder)
    a, (window, types) = attention_in(model.blocks[0]), listed_windows(model)
    return shape | {
        **rotary(a.position, a.head_dim),
        "attn_logit_softcapping": a.softcap,
        "sliding_window": window or model.context,
        "layer_types": types,
    }


def gemma_config(spec: Model, model_type: str, architecture: str) -> dict[str, Any]:
    """The keys that Gemma 2 and 3 share.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a, ffn = attention_in(model.blocks[0]), network(gated_in(model))
    scale = a.head_dim**-0.5 if a.scale is None else a.scale
    return (
        of_class(model_type, architecture)
        | sizes(model)
        | heads(a)
        | ffn
        | epsilon(model.norm)
        | {
            "hidden_activation": ffn["hidden_act"],
            "attention_bias": a.bias,
            "query_pre_attn_scalar": whole(solved(lambda x: x**-0.5, scale, reciprocal(scale) ** 2)),
            "final_logit_softcapping": model.logit_softcap,
        }
    )


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
