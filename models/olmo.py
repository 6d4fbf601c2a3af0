"""OLMo (Groeneveld et al. 2024, arXiv 2402.00838): Llama with norms that have no parameters, and clipped projections."""

from __future__ import annotations

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """An OLMo decoder."""
    heads, norm = config.size("num_attention_heads", 32), LayerNorm(eps=1e-5, weight=False, bias=False)
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 4096) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 2048))
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        position=position,
        clip=config.optional_number("clip_qkv"),
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    block = Block(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.size("num_hidden_layers", 32), norm, context)
