"""mlx-lm's `glm4`: norms before and after, RoPE on part of each head by adjacent channels."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.glm4 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, a head of its own, no RoPE scaling."""
    return plain_rope(everywhere(spec, GLU, act="silu"))


TYPE = MlxType(FAMILY, computes, untied=True)
