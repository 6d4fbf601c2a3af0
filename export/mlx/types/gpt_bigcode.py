"""mlx-lm's `gpt_bigcode`: GPT-2 with one key head."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mlp import MLP
from edgeformer.models.gpt_bigcode import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU in its exact form, scores scaled by head_dim, one key head: with as many as heads, it splits q, k and v otherwise than
    transformers."""
    return everywhere(everywhere(spec, MLP, act="gelu"), GQA, scale=None, kv_heads=1)


TYPE = MlxType(FAMILY, computes, prefix="transformer.")
