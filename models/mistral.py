"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with one sliding window for all layers."""

from __future__ import annotations

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, llama_like

__all__ = ["IGNORED", "NAMES", "PREFIXES", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Mistral decoder."""
    heads = config.size("num_attention_heads")
    head_dim = config.take("head_dim", None) or config.size("hidden_size") // heads
    context = config.size("max_position_embeddings", 131_072)
    config.expect(layer_types=None)
    attention = GQA(
        heads=heads,
        kv_heads=config.take("num_key_value_heads", 8) or heads,
        head_dim=head_dim,
        position=rope(config, head_dim, context),
        mask=Mask(window=config.take("sliding_window", 4096)),
        dropout=float(config.take("attention_dropout", 0.0)),
    )
    return llama_like(config, [attention] * config.size("num_hidden_layers"), context)
