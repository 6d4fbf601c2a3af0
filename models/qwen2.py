"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671): Llama with biases on q, k and v, and sliding windows per layer."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import llama_config, model_of
from edgeformer.models._rope import rope
from edgeformer.models.llama import (
    IGNORED,
    NAMES,
    PREFIXES,
    TIED,
    layer_windows,
    llama_like,
    windowed,
    windows_config,
)
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Qwen2 decoder."""
    config.expect(use_mrope=False)
    config.ignore("dual_chunk_attention_config")  # another attention beyond 262,144 tokens, which transformers lacks
    heads = config.size("num_attention_heads")
    head_dim = config.optional_size("head_dim") or config.size("hidden_size") // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 32_768))
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 32) or heads,
        head_dim=head_dim,
        position=position,
        bias=True,
        dropout=config.number("attention_dropout", 0.0),
    )
    return llama_like(config, windowed(attention, layer_windows(config)), context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return llama_config(spec, "qwen2", "Qwen2ForCausalLM") | windows_config(model_of(spec, Decoder))


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, common=True)
