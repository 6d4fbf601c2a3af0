"""Granite 3 (IBM 2024): Llama with multipliers on embeddings, residuals, scores and logits."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, gated_in, llama_config, model_of, reciprocal, solved
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Granite decoder."""
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    attention, context = rotary_attention(config, 32, 2048, scale=config.number("attention_multiplier", 1.0))
    ffn = gated(config, bias=config.flag("mlp_bias", False))
    scale = config.number("residual_multiplier", 1.0)
    block = Block(attention=attention, ffn=ffn, norm=norm, residual_scale=scale)
    return decoder(
        config,
        [block] * config.layers("num_hidden_layers", 32),
        norm,
        context,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.positive("logits_scaling", 1.0),
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block = block_of(model, Block)
    a = attention_in(block)
    shape = llama_config(spec, "granite", "GraniteForCausalLM") | {
        "attention_bias": a.bias,
        "mlp_bias": gated_in(model).bias,
        "attention_multiplier": a.head_dim**-0.5 if a.scale is None else a.scale,
        "embedding_multiplier": model.embed_scale,
        "residual_multiplier": block.residual_scale,
        "logits_scaling": solved(lambda x: 1 / x, model.logit_scale, reciprocal(model.logit_scale)),
    }
    return {key: value for key, value in shape.items() if key != "head_dim"}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
