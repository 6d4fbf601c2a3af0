"""Granite 3 (IBM 2024): Llama with multipliers on embeddings, residuals, scores and logits."""

from __future__ import annotations

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Granite decoder."""
    heads, norm = config.size("num_attention_heads", 32), RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 4096) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 2048))
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        position=position,
        bias=bias,
        output_bias=bias,
        scale=config.number("attention_multiplier", 1.0),
        dropout=config.number("attention_dropout", 0.0),
    )
    ffn = gated(config, bias=config.flag("mlp_bias", False))
    scale = config.number("residual_multiplier", 1.0)
    block = Block(attention=attention, ffn=ffn, norm=norm, residual_scale=scale)
    return decoder(
        config,
        [block] * config.size("num_hidden_layers", 32),
        norm,
        context,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.positive("logits_scaling", 1.0),
    )
