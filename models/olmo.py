"""OLMo (Groeneveld et al. 2024, arXiv 2402.00838): Llama with norms without parameters, and clipped projections."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, llama_config, model_of
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """An OLMo decoder."""
    norm = LayerNorm(eps=1e-5, weight=False, bias=False)
    attention, context = rotary_attention(config, 32, 2048, clip=config.optional_number("clip_qkv"))
    block = Block(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 32), norm, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    a = attention_in(model_of(spec, Decoder).blocks[0])
    shape = llama_config(spec, "olmo", "OlmoForCausalLM") | {"attention_bias": a.bias, "clip_qkv": a.clip}
    return {key: value for key, value in shape.items() if key not in ("rms_norm_eps", "head_dim")}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
