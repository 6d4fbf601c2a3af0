"""Granite 3 (IBM 2024): Llama with multipliers on embeddings, residuals, scores and logits."""

from __future__ import annotations

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Granite decoder."""
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    attention, context = rotary_attention(config, 32, 2048, scale=config.number("attention_multiplier", 1.0))
    ffn = gated(config, bias=config.flag("mlp_bias", False))
    scale = config.number("residual_multiplier", 1.0)
    block = Block(attention=attention, ffn=ffn, norm=norm, residual_scale=scale)
    return decoder(
        config,
        [block] * config.layers("num_hidden_layers", 32),
        norm,
        context,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.positive("logits_scaling", 1.0),
    )


FAMILY = Family(spec, NAMES, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
