"""mlx-lm's `qwen3_moe`: Qwen3 with experts in all blocks or some, stacked."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, no_windows, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.moe import MoE
from edgeformer.models.qwen3_moe import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, no sliding windows, no RoPE scaling, no biases."""
    spec = everywhere(everywhere(spec, GLU, act="silu"), MoE, act="silu")
    return plain_rope(no_windows(everywhere(spec, GQA, bias=False, output_bias=False)))


TYPE = MlxType(FAMILY, computes)
