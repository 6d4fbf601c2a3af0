"""mlx-lm's `cohere`: attention and feed-forward network in parallel after one norm, RoPE on adjacent channels."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, narrow_heads, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.cohere import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, a tied head, no RoPE scaling, head_dim from the width."""
    return replace(narrow_heads(plain_rope(everywhere(spec, GLU, act="silu"))), tied=True)


TYPE = MlxType(FAMILY, computes)
