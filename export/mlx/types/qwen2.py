"""mlx-lm's `qwen2`: biases on q, k and v."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, mlx_rope, narrow_heads, no_windows
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.qwen2 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, no sliding windows, head_dim from the width."""
    return narrow_heads(no_windows(everywhere(spec, GLU, act="silu")))


TYPE = MlxType(FAMILY, computes, config=mlx_rope)
