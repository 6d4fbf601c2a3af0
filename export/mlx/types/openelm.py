"""mlx-lm's `openelm`: heads and widths that grow with depth."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.openelm import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, whatever activation_fn_name says."""
    return everywhere(spec, GLU, act="silu")


TYPE = MlxType(FAMILY, computes, prefix="transformer.")
