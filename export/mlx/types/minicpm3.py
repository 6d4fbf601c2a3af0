"""mlx-lm's `minicpm3`: latent attention with MiniCPM's multipliers."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types import minicpm
from edgeformer.exporters.mlx.types._type import MlxType, everywhere
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.mla import MLA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.models._inverse import Config
from edgeformer.models._shape import need
from edgeformer.models.deepseek_v2 import latent_in
from edgeformer.models.minicpm3 import FAMILY
from edgeformer.spec import Node
from edgeformer.spec.derive import rebuilt


def computes(spec: Decoder) -> Decoder:
    """SwiGLU without biases, a norm epsilon of 1e-5 in attention, values as wide as the width allows; of a LongRoPE it takes
    the long factors at every length."""
    a = latent_in(spec)
    need(a.q_rank is not None, "mlx-lm's minicpm3 has no attention without q_lora_rank")
    spec = everywhere(spec, GLU, act="silu", bias=False)
    spec = everywhere(spec, MLA, norm=RMSNorm(eps=1e-5), v_dim=spec.width // a.heads, scale=(a.nope + a.rope) ** -0.5)
    made = rebuilt(spec, _rope)
    assert isinstance(made, Decoder)
    return made


def _rope(node: Node) -> Node:
    if not isinstance(node, Rope) or node.scaling is None:
        return node
    scaling = node.scaling
    same = isinstance(scaling, LongRopeScaling) and scaling.short_factor == scaling.long_factor
    return replace(node, scaling=replace(scaling, temperature=1.0) if same else None)  # type: ignore[type-var]


def config(spec: Decoder, config: Config) -> Config:
    """With multipliers as `minicpm`'s; mlx-lm reads factors and the original length, from which it derives a temperature."""
    scaling = latent_in(spec).position.scaling  # type: ignore[attr-defined]
    factors = scaling.long_factor if isinstance(scaling, LongRopeScaling) else (1.0,) * (latent_in(spec).rope // 2)
    said = {"short_factor": factors, "long_factor": factors, "original_max_position_embeddings": spec.context}
    return minicpm.config(spec, {**config, "rope_scaling": None}) | {"rope_scaling": {"type": "longrope", **said}}


TYPE = MlxType(FAMILY, computes, config=config, untied=True)
