"""mlx-lm's `starcoder2`: LayerNorm, a plain feed-forward network, RoPE."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, narrow_heads, no_windows, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mlp import MLP
from edgeformer.models.starcoder2 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU in its exact form (transformers has the tanh approximation), biases, no sliding windows, no RoPE scaling."""
    spec = everywhere(everywhere(spec, MLP, act="gelu", bias=True), GQA, bias=True, output_bias=True)
    return narrow_heads(plain_rope(no_windows(spec)))


TYPE = MlxType(FAMILY, computes)
