"""mlx-lm's `glm`: RoPE on whole heads by adjacent channels, whatever partial_rotary_factor is."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope
from edgeformer.models.glm import FAMILY
from edgeformer.spec import Node
from edgeformer.spec.derive import rebuilt


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, a head of its own, every channel rotated, no RoPE scaling."""

    def whole(node: Node) -> Node:
        if not isinstance(node, GQA) or not isinstance(node.position, Rope):
            return node
        return replace(node, position=replace(node.position, dim=node.head_dim))

    made = rebuilt(plain_rope(everywhere(spec, GLU, act="silu")), whole)
    assert isinstance(made, Decoder)
    return made


TYPE = MlxType(FAMILY, computes, untied=True)
