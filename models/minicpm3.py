"""MiniCPM3 (OpenBMB 2024): latent attention with MiniCPM's multipliers."""

from __future__ import annotations

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models.deepseek_v2 import IGNORED, PREFIXES, TIED, latent_attention, names
from edgeformer.models.llama import decoder, gated
from edgeformer.models.minicpm import multipliers

__all__ = ["IGNORED", "PREFIXES", "TIED", "names", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A MiniCPM3 decoder."""
    count, norm = config.layers("num_hidden_layers", 62), RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    attention, context = latent_attention(config, Rope, inner_eps=norm.eps)
    residual_scale, scales = multipliers(config, embed=12.0, depth=1.4, base=256)
    ffn = gated(config, bias=config.flag("mlp_bias", False))
    block = Block(attention=attention, ffn=ffn, norm=norm, residual_scale=residual_scale)
    return decoder(config, [block] * count, norm, context, tied=True, **scales)


FAMILY = Family(spec, names, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
