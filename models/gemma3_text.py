"""Gemma 3, text (Gemma Team 2025, arXiv 2503.19786): five sliding-window layers per full one, and a RoPE theta for each kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.offset_rms_norm import OffsetRMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attentions_in, listed_windows, model_of, rotary
from edgeformer.models._rope import read_scaling
from edgeformer.models._windows import FULL, SLIDING, layer_types
from edgeformer.models.gemma2 import IGNORED, NAMES, PREFIXES, TIED, gemma_attention, gemma_config, gemma_decoder
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Gemma 3 decoder."""
    if config.flag("use_bidirectional_attention", False):
        raise ConfigError(f"{config.where}: use_bidirectional_attention = true is not supported; only false is")
    config.ignore("cache_implementation", "hidden_act")
    config.expect(attn_logit_softcapping=None)  # transformers has the key but doesn't apply it
    count, head_dim = config.layers("num_hidden_layers", 26), config.size("head_dim", 256)
    context, window = config.size("max_position_embeddings", 131_072), config.size("sliding_window", 4096)
    pattern = config.size("sliding_window_pattern", config.size("_sliding_window_pattern", 6))
    types = layer_types(config, count, [SLIDING if (i + 1) % pattern else FULL for i in range(count)])
    shared = gemma_attention(config, head_dim, default_heads=(8, 4), softcap=None)
    attention = GQA(qk_norm=OffsetRMSNorm(eps=config.number("rms_norm_eps", 1e-6)), **shared)
    ropes = _ropes(config, head_dim, context)
    attentions = [
        replace(attention, position=ropes[t], mask=Mask(window=window if t == SLIDING else None)) for t in types
    ]
    return gemma_decoder(config, attentions, context, softcap=None)


def _ropes(config: HfConfig, head_dim: int, context: int) -> dict[str, Rope]:
    """The RoPE of each kind of layer. rope_scaling applies to full layers only."""
    named = config.take("rope_parameters", None) or {}
    thetas = {FULL: config.number("rope_theta", 1e6), SLIDING: config.number("rope_local_base_freq", 1e4)}
    given = {FULL: dict(config.take("rope_scaling", None) or {}), SLIDING: {}}
    if unknown := sorted(named.keys() - {FULL, SLIDING}):
        raise ConfigError(f"{config.where}: rope_parameters has unknown kinds of layers: {', '.join(unknown)}")
    ropes = {}
    for kind, theta in thetas.items():
        data = {**given[kind], **(named.get(kind) or {})}
        theta = float(data.pop("rope_theta", theta))
        ropes[kind] = Rope(dim=head_dim, theta=theta, scaling=read_scaling(config, data, context))
    return ropes


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    window, types = listed_windows(model)
    ropes = {kind: a.position for kind, a in zip(types, attentions_in(model), strict=True)}
    head_dim = attentions_in(model)[0].head_dim
    full, sliding = (rotary(ropes.get(kind), head_dim) for kind in (FULL, SLIDING))
    scalings = {"rope_scaling": full["rope_scaling"]} if "rope_scaling" in full else {}
    return gemma_config(spec, "gemma3_text", "Gemma3ForCausalLM") | {
        "rope_theta": full["rope_theta"] if FULL in ropes else 1e6,
        "rope_local_base_freq": sliding["rope_theta"],
        "sliding_window": window or model.context,
        "layer_types": types,
        **scalings,
    }


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
