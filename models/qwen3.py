"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama with RMSNorm on each query and key head, and sliding windows per layer."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._shape import need
from edgeformer.models.llama import (
    IGNORED,
    NAMES,
    PREFIXES,
    TIED,
    layer_windows,
    llama_like,
    shared_config,
    windowed,
    windows_config,
)
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Qwen3 decoder."""
    head_dim, norm = config.size("head_dim", 128), RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    attention, context = rotary_attention(config, None, 32_768, kv_heads=32, head_dim=head_dim, qk_norm=norm)
    return llama_like(config, windowed(attention, layer_windows(config)), context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec doesn't fit this family.
    """
    data, attentions, ffn = shared_config(spec)
    first = attentions[0]
    need(
        first.qk_norm == RMSNorm(eps=data["rms_norm_eps"]), "queries and keys have no RMSNorm with the blocks' epsilon"
    )
    need(
        first.bias == first.output_bias and not ffn.bias,
        "biases are on some but not all of q, k, v and o, or on the FFN",
    )
    shape = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": first.bias}
    return {**shape, **data, **windows_config(attentions)}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
