"""mlx-lm's `olmoe`: many small experts, queries and keys normalised over all heads."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, mlx_rope, narrow_heads
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.moe import MoE
from edgeformer.models.olmoe import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, no clipping, head_dim from the width."""
    return narrow_heads(everywhere(everywhere(spec, MoE, act="silu"), GQA, clip=None))


TYPE = MlxType(FAMILY, computes, config=mlx_rope)
