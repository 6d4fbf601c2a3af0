"""SmolLM3 (Hugging Face 2025): Llama without RoPE in every fourth layer (Yang et al. 2025, arXiv 2501.18795, "RNoPE")."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mask import Mask
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, attentions_in, gated_in, listed_windows, llama_config, model_of
from edgeformer.models._windows import FULL, SLIDING, windows_by_type
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, llama_like
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A SmolLM3 decoder."""
    config.ignore("max_window_layers")
    count = config.layers("num_hidden_layers", 36)
    attention, context = rotary_attention(config, 16, 32_768, kv_heads=4, theta=2e6)
    every = config.size("no_rope_layer_interval", 4)
    rotated = config.take("no_rope_layers", None)  # despite the name, 1 is a layer with RoPE
    if rotated is None:
        rotated = [int((i + 1) % every != 0) for i in range(count)]
    if not isinstance(rotated, list) or len(rotated) != count or not {0, 1}.issuperset(rotated):
        raise ConfigError(f"{config.where}: no_rope_layers must list 0 or 1 for each of {count} layers")
    windowed = config.flag("use_sliding_window", False)
    window = config.optional_size("sliding_window")
    window = window if windowed else None
    usual = [FULL if r or window is None else SLIDING for r in rotated]
    windows = windows_by_type(config, count, window, usual)
    attentions = [
        replace(attention, position=attention.position if r else None, mask=Mask(window=w))
        for r, w in zip(rotated, windows, strict=True)
    ]
    decoder = llama_like(config, attentions, context, ffn_bias=config.flag("mlp_bias", False))
    return replace(decoder, tied=config.flag("tie_word_embeddings", True))


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    window, types = listed_windows(model)
    return llama_config(spec, "smollm3", "SmolLM3ForCausalLM") | {
        "attention_bias": attention_in(model.blocks[0]).bias,
        "mlp_bias": gated_in(model).bias,
        "no_rope_layers": [int(a.position is not None) for a in attentions_in(model)],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": types,
        "pad_token_id": None,
    }


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
