"""mlx-lm's `stablelm`: LayerNorm with a gated feed-forward network, RoPE on part of each head."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.stablelm import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, a head of its own, no RoPE scaling."""
    return replace(plain_rope(everywhere(spec, GLU, act="silu")), tied=spec.tied)


TYPE = MlxType(FAMILY, computes, untied=True)
