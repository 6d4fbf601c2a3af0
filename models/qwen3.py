"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama with RMSNorm on each query and key head, and sliding windows per layer."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, llama_config, model_of
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
    """A Qwen3 decoder."""
    head_dim, norm = config.size("head_dim", 128), RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    attention, context = rotary_attention(config, None, 32_768, kv_heads=32, head_dim=head_dim, qk_norm=norm)
    return llama_like(config, windowed(attention, layer_windows(config)), context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    bias = {"attention_bias": attention_in(model.blocks[0]).bias}
    return llama_config(spec, "qwen3", "Qwen3ForCausalLM") | bias | windows_config(model)


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, common=True)
