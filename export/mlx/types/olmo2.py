"""mlx-lm's `olmo2`: norms on the outputs of attention and feed-forward network."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, mlx_rope, narrow_heads
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.olmo2 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, head_dim from the width."""
    return narrow_heads(everywhere(spec, GLU, act="silu"))


TYPE = MlxType(FAMILY, computes, config=mlx_rope)
