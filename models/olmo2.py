"""OLMo 2 (OLMo Team 2024, arXiv 2501.00656): output norms on attention and FFN, queries and keys normalised over all heads."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.output_norm_block import OutputNormBlock
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.whole_norm import WholeNorm
from edgeformer.models import llama
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, llama_config, model_of
from edgeformer.models._names import named
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]

NAMES = llama.NAMES | named(
    {"attention_norm": "post_attention_layernorm", "ffn_norm": "post_feedforward_layernorm"},
    "layers.{i}.",
    "layers.{i}.",
)


def spec(config: HfConfig) -> Decoder:
    """An OLMo 2 decoder."""
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    attention, context = rotary_attention(config, 32, 2048, qk_norm=WholeNorm(norm=norm))
    block = OutputNormBlock(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 32), norm, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    a = attention_in(model_of(spec, Decoder).blocks[0])
    shape = llama_config(spec, "olmo2", "Olmo2ForCausalLM") | {"attention_bias": a.bias}
    return {key: value for key, value in shape.items() if key != "head_dim"}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
