"""mlx-lm's `phi3`: q, k and v as one matrix, gate and up as another."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, narrow_heads, no_windows, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.phi3 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, no sliding windows, head_dim from the width. Of a LongRoPE it takes the long factors at every length, so it is
    not transformers' one."""
    return narrow_heads(plain_rope(no_windows(everywhere(spec, GLU, act="silu"))))


TYPE = MlxType(FAMILY, computes)
