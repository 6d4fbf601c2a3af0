"""Gemma (Gemma Team 2024, arXiv 2403.08295): Llama with norms around 1 + w, GeGLU and scaled embeddings."""

from __future__ import annotations

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.offset_rms_norm import OffsetRMSNorm
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Gemma decoder."""
    config.expect(use_bidirectional_attention=None)
    heads, head_dim = config.size("num_attention_heads", 16), config.size("head_dim", 256)
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 8192))
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 16) or heads,
        head_dim=head_dim,
        position=position,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    norm, ffn = OffsetRMSNorm(eps=config.number("rms_norm_eps", 1e-6)), gated(config, "gelu_pytorch_tanh")
    config.expect(hidden_activation=config.take("hidden_activation", None) and config.take("hidden_act", None))
    block = Block(attention=attention, ffn=ffn, norm=norm)
    blocks = [block] * config.size("num_hidden_layers", 28)
    return decoder(config, blocks, norm, context, tied=True, embed_scale=config.size("hidden_size") ** 0.5)
