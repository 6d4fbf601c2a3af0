"""mlx-lm's `deepseek_v2`: latent attention, many small experts and shared ones."""

from __future__ import annotations

import math

from edgeformer.exporters.mlx.types._type import MlxType, everywhere
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.mla import MLA
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.models._inverse import Config, solved
from edgeformer.models._shape import need
from edgeformer.models.deepseek_v2 import FAMILY, latent_in


def computes(spec: Decoder) -> Decoder:
    """SwiGLU without biases, a head of its own, a norm epsilon of 1e-6 in attention, and YaRN or no RoPE scaling."""
    position = latent_in(spec).position
    scaling = position.scaling  # type: ignore[attr-defined]
    need(scaling is None or isinstance(scaling, YarnScaling), "mlx-lm's deepseek_v2 has no RoPE scaling but YaRN")
    need(
        scaling is None or scaling.truncate, "mlx-lm rounds YaRN's ramp to whole channels; this spec doesn't (truncate)"
    )
    spec = everywhere(everywhere(spec, GLU, act="silu", bias=False), MoE, act="silu")
    return everywhere(spec, MLA, norm=RMSNorm(eps=1e-6))


def config(spec: Decoder, config: Config) -> Config:
    """mlx-lm always reads rope_scaling: YaRN with a factor of 1 leaves the angles alone."""
    said = config.get("rope_scaling")
    if said is None:
        said = {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": spec.context}
        return {**config, "rope_scaling": said}
    factor, heat, all_dim = said["factor"], said.pop("attention_factor"), said.get("mscale_all_dim", 0.0)

    def temperature(mscale: float) -> float:
        step = 0.1 * math.log(factor)
        return (step * mscale + 1.0) / (step * all_dim + 1.0) if factor > 1 else 1.0

    guess = (heat * (0.1 * all_dim * math.log(factor) + 1.0) - 1.0) / (0.1 * math.log(factor)) if factor > 1 else 0.0
    mscale = solved(temperature, heat, guess)
    need(
        abs(temperature(mscale) - heat) < 1e-9, f"mlx-lm's YaRN has no temperature of {heat} with a factor of {factor}"
    )
    return {**config, "rope_scaling": {**said, "type": "yarn", "mscale": mscale}}


TYPE = MlxType(FAMILY, computes, config=config, unquantized=(".mlp.gate",), untied=True)
