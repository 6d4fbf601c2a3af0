"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with one sliding window for all layers."""

from __future__ import annotations

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, llama_like

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Mistral decoder."""
    heads = config.size("num_attention_heads")
    head_dim = config.optional_size("head_dim") or config.size("hidden_size") // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 131_072))
    config.expect(layer_types=None)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 8) or heads,
        head_dim=head_dim,
        position=position,
        mask=Mask(window=config.optional_size("sliding_window", 4096)),
        dropout=config.number("attention_dropout", 0.0),
    )
    return llama_like(config, [attention] * config.size("num_hidden_layers"), context)
