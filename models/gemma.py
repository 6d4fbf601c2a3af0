"""Gemma (Gemma Team 2024, arXiv 2403.08295): Llama with norms that scale by 1 + w, GeGLU and scaled embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.offset_rms_norm import OffsetRMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, llama_config, model_of
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Gemma decoder."""
    config.expect(use_bidirectional_attention=None)
    head_dim = config.size("head_dim", 256)
    attention, context = rotary_attention(config, 16, 8192, kv_heads=16, head_dim=head_dim)
    norm, ffn = OffsetRMSNorm(eps=config.number("rms_norm_eps", 1e-6)), _feed_forward(config)
    block = Block(attention=attention, ffn=ffn, norm=norm)
    blocks = [block] * config.layers("num_hidden_layers", 28)
    return decoder(config, blocks, norm, context, tied=True, embed_scale=config.size("hidden_size") ** 0.5)


def _feed_forward(config: HfConfig) -> GLU:
    """The FFN. Gemma's first configs have "gelu" and mean its tanh approximation, as transformers reads them; later ones repeat
    it as hidden_activation."""
    ffn = gated(config, "gelu_pytorch_tanh")
    ffn = replace(ffn, act="gelu_tanh") if ffn.act == "gelu" else ffn
    if config.take("hidden_activation", None) is not None and config.activation("hidden_activation", "") != ffn.act:
        raise ConfigError(
            f"{config.where}: hidden_act = {config.data.get('hidden_act')!r} and hidden_activation ="
            f" {config.data['hidden_activation']!r} are two activations; they must agree"
        )
    return ffn


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    shape = llama_config(spec, "gemma", "GemmaForCausalLM")
    bias = {"attention_bias": attention_in(model.blocks[0]).bias}
    return shape | bias | {"hidden_activation": shape["hidden_act"]}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
