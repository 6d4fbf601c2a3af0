"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with one sliding window for all layers."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import listed_windows, llama_config, model_of
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, llama_like
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


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
    return llama_like(config, [attention] * config.layers("num_hidden_layers"), context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    window, _ = listed_windows(model_of(spec, Decoder))
    return llama_config(spec, "mistral", "MistralForCausalLM") | {"sliding_window": window}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, common=True)
