"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama with RMSNorm on each query and key head, and windows per layer."""

from __future__ import annotations

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, layer_windows, llama_like, windowed

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Qwen3 decoder."""
    heads = config.size("num_attention_heads")
    head_dim = config.size("head_dim", 128)
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 32_768))
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 32) or heads,
        head_dim=head_dim,
        position=position,
        qk_norm=RMSNorm(eps=config.number("rms_norm_eps", 1e-6)),
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    return llama_like(config, windowed(attention, layer_windows(config)), context)
