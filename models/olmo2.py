"""OLMo 2 (OLMo Team 2024, arXiv 2501.00656): norms on what attention and FFN give, queries and keys normalised whole."""

from __future__ import annotations

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.output_norm_block import OutputNormBlock
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.whole_norm import WholeNorm
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._names import named
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]

NAMES = llama.NAMES | named(
    {"attention_norm": "post_attention_layernorm", "ffn_norm": "post_feedforward_layernorm"},
    "layers.{i}.",
    "layers.{i}.",
)


def spec(config: HfConfig) -> Decoder:
    """An OLMo 2 decoder."""
    heads, norm = config.size("num_attention_heads", 32), RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 4096) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 2048))
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        position=position,
        qk_norm=WholeNorm(norm=norm),
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    block = OutputNormBlock(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.size("num_hidden_layers", 32), norm, context)
