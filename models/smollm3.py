"""SmolLM3 (Hugging Face 2025): Llama without rotation in every fourth layer (Yang et al. 2025, arXiv 2501.18795, "RNoPE")."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.errors import ConfigError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models._windows import FULL, SLIDING, windows_by_type
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, llama_like

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A SmolLM3 decoder."""
    config.ignore("max_window_layers")
    heads, count = config.size("num_attention_heads", 16), config.size("num_hidden_layers", 36)
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 2048) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 32_768), theta=2e6)
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 4) or heads,
        head_dim=head_dim,
        position=position,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    every = config.size("no_rope_layer_interval", 4)
    rotated = config.take("no_rope_layers", None)  # the name says the opposite: 1 is a layer with rotation
    if rotated is None:
        rotated = [int((i + 1) % every != 0) for i in range(count)]
    if not isinstance(rotated, list) or len(rotated) != count or not {0, 1}.issuperset(rotated):
        raise ConfigError(f"{config.where}: no_rope_layers must give 0 or 1 for each of {count} layers")
    windowed = config.flag("use_sliding_window", False)
    window = config.optional_size("sliding_window")
    window = window if windowed else None
    usual = [FULL if r or window is None else SLIDING for r in rotated]
    windows = windows_by_type(config, count, window, usual)
    attentions = [
        replace(attention, position=position if r else None, mask=Mask(window=w))
        for r, w in zip(rotated, windows, strict=True)
    ]
    decoder = llama_like(config, attentions, context, ffn_bias=config.flag("mlp_bias", False))
    return replace(decoder, tied=config.flag("tie_word_embeddings", True))
