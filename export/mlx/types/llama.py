"""mlx-lm's `llama`: Llama, Mistral and everything shaped like them, with sliding windows in some layers."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, mlx_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models.llama import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, whatever hidden_act says."""
    return everywhere(spec, GLU, act="silu")


TYPE = MlxType(FAMILY, computes, config=mlx_rope, windows=True)
