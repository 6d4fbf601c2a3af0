"""OLMo (Groeneveld et al. 2024, arXiv 2402.00838): Llama with norms without parameters, and clipped projections."""

from __future__ import annotations

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, decoder, gated

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "spec"]


def spec(config: HfConfig) -> Decoder:
    """An OLMo decoder."""
    norm = LayerNorm(eps=1e-5, weight=False, bias=False)
    attention, context = rotary_attention(config, 32, 2048, clip=config.optional_number("clip_qkv"))
    block = Block(attention=attention, ffn=gated(config), norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 32), norm, context)


FAMILY = Family(spec, NAMES, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
