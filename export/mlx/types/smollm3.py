"""mlx-lm's `smollm3`: Llama without RoPE in some layers."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, mlx_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models._inverse import listed_windows
from edgeformer.models._shape import need
from edgeformer.models._windows import FULL
from edgeformer.models.smollm3 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, whatever hidden_act says."""
    _, types = listed_windows(spec)
    need(FULL in types, "mlx-lm needs at least one layer without a sliding window")
    return everywhere(spec, GLU, act="silu")


TYPE = MlxType(FAMILY, computes, config=mlx_rope)
