"""GLM-4-0414 (Zhipu AI 2025): GLM with norms before and after."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.sandwich_block import SandwichBlock
from edgeformer.models import glm
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import model_of, of_class
from edgeformer.models._names import named
from edgeformer.models.glm import half_rotated, half_rotated_config
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]

NAMES = glm.NAMES | named(
    {"attention_out_norm": "post_self_attn_layernorm", "ffn_out_norm": "post_mlp_layernorm"},
    "layers.{i}.",
    "layers.{i}.",
)


def spec(config: HfConfig) -> Decoder:
    """A GLM-4 decoder."""
    attention, norm, context = half_rotated(config)
    block = SandwichBlock(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 40), norm, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return of_class("glm4", "Glm4ForCausalLM") | half_rotated_config(model_of(spec, Decoder))


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
