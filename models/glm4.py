"""GLM-4-0414 (Zhipu AI 2025): norms before and after, RoPE on half of each head by adjacent channels, gate and up fused."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.layers.sandwich_block import SandwichBlock
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    epsilon,
    gated_in,
    heads,
    model_of,
    network,
    of_class,
    rotary,
    sizes,
)
from edgeformer.models._names import halves, named
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]

NAMES = (
    llama.NAMES
    | named(
        {"attention_out_norm": "post_self_attn_layernorm", "ffn_out_norm": "post_mlp_layernorm"},
        "layers.{i}.",
        "layers.{i}.",
    )
    | halves("layers.{i}.ffn", "layers.{i}.mlp.gate_up_proj")
)


def spec(config: HfConfig) -> Decoder:
    """A GLM-4 decoder."""
    heads, head_dim = config.size("num_attention_heads", 32), config.optional_size("head_dim", 128)
    head_dim = head_dim or config.size("hidden_size", 4096) // heads
    longest = config.size("max_position_embeddings", 131_072)
    position, context = rope(config, head_dim, longest, partial=0.5, kind=RopeInterleaved)
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1.5625e-07))
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 2) or heads,
        head_dim=head_dim,
        position=position,
        bias=config.flag("attention_bias", True),
        dropout=config.number("attention_dropout", 0.0),
    )
    block = SandwichBlock(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 40), norm, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a = attention_in(model.blocks[0])
    return (
        of_class("glm4", "Glm4ForCausalLM")
        | sizes(model)
        | heads(a)
        | network(gated_in(model))
        | epsilon(model.norm)
        | rotary(a.position, a.head_dim, kind=RopeInterleaved, share="partial_rotary_factor")
        | {"attention_bias": a.bias, "pad_token_id": None}
    )


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
