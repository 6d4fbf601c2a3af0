"""GLM-4-9B as transformers has it (GLM Team 2024, arXiv 2406.12793): RoPE on half of each head by adjacent channels, gate and up
fused."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    Config,
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
from edgeformer.models._names import halves
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "half_rotated", "half_rotated_config", "spec"]

NAMES = llama.NAMES | halves("layers.{i}.ffn", "layers.{i}.mlp.gate_up_proj")


def half_rotated(config: HfConfig) -> tuple[GQA, RMSNorm, int]:
    """The attention and norm of GLM and GLM-4-0414, and the positions that RoPE reaches."""
    heads, head_dim = config.size("num_attention_heads", 32), config.optional_size("head_dim", 128)
    head_dim = head_dim or config.size("hidden_size", 4096) // heads
    longest = config.size("max_position_embeddings", 131_072)
    position, context = rope(config, head_dim, longest, partial=0.5, kind=RopeInterleaved)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 2) or heads,
        head_dim=head_dim,
        position=position,
        bias=config.flag("attention_bias", True),
        dropout=config.number("attention_dropout", 0.0),
    )
    return attention, RMSNorm(eps=config.number("rms_norm_eps", 1.5625e-07)), context


def half_rotated_config(model: Decoder) -> Config:
    """The inverse of `half_rotated`, with sizes and the feed-forward network."""
    a = attention_in(model.blocks[0])
    return (
        sizes(model)
        | heads(a)
        | network(gated_in(model))
        | epsilon(model.norm)
        | rotary(a.position, a.head_dim, kind=RopeInterleaved, share="partial_rotary_factor")
        | {"attention_bias": a.bias, "pad_token_id": None}
    )


def spec(config: HfConfig) -> Decoder:
    """A GLM decoder."""
    attention, norm, context = half_rotated(config)
    block = Block(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 40), norm, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return of_class("glm", "GlmForCausalLM") | half_rotated_config(model_of(spec, Decoder))


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
