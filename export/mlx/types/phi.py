"""mlx-lm's `phi`: attention and feed-forward network in parallel, RoPE on part of each head."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mlp import MLP
from edgeformer.models.phi import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU by tanh, a head of its own with a bias, no norms of queries and keys, no RoPE scaling."""
    spec = everywhere(everywhere(spec, MLP, act="gelu_tanh"), GQA, qk_norm=None)
    return replace(plain_rope(spec), tied=False, head_bias=True)


TYPE = MlxType(FAMILY, computes)
