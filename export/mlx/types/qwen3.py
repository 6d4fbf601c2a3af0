"""mlx-lm's `qwen3`: an RMSNorm on each query and key head."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, mlx_rope, no_windows
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.models.qwen3 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, no sliding windows, no biases."""
    spec = everywhere(spec, GQA, bias=False, output_bias=False)
    return no_windows(everywhere(spec, GLU, act="silu"))


TYPE = MlxType(FAMILY, computes, config=mlx_rope)
