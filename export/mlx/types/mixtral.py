"""mlx-lm's `mixtral`: experts in every block, stacked."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, narrow_heads, no_windows, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.moe import MoE
from edgeformer.models import mixtral
from edgeformer.models._names import stacked_experts
from edgeformer.weights.binding import NameMap


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, no sliding windows, no RoPE scaling, head_dim from the width."""
    return narrow_heads(plain_rope(no_windows(everywhere(spec, MoE, act="silu"))))


def names(spec: Decoder) -> NameMap:
    """Canonical name -> stored name: mixtral keeps Mixtral's own name of the mixture."""
    return stacked_experts(spec, mixtral.names(spec), "block_sparse_moe", "mlp")[1]


TYPE = MlxType(mixtral.FAMILY, computes, names=names)
