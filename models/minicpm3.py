"""MiniCPM3 (OpenBMB 2024): latent attention with MiniCPM's multipliers."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import epsilon, gated_in, model_of, network, of_class, sizes
from edgeformer.models.deepseek_v2 import IGNORED, PREFIXES, TIED, latent_attention, latent_config, latent_in, names
from edgeformer.models.llama import decoder, gated
from edgeformer.models.minicpm import multipliers, multipliers_config
from edgeformer.spec import Model

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A MiniCPM3 decoder."""
    count, norm = config.layers("num_hidden_layers", 62), RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    attention, context = latent_attention(config, Rope, inner_eps=norm.eps)
    residual_scale, scales = multipliers(config, embed=12.0, depth=1.4, base=256)
    ffn = gated(config, bias=config.flag("mlp_bias", False))
    block = Block(attention=attention, ffn=ffn, norm=norm, residual_scale=residual_scale)
    return decoder(config, [block] * count, norm, context, tied=True, **scales)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a, ffn = latent_in(model), gated_in(model)
    return (
        of_class("minicpm3", "MiniCPM3ForCausalLM")
        | sizes(model)
        | network(ffn)
        | epsilon(model.norm)
        | latent_config(a, Rope)
        | multipliers_config(model)
        | {"mlp_bias": ffn.bias}
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
