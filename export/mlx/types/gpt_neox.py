"""mlx-lm's `gpt_neox`: Pythia's parallel or sequential blocks, RoPE on part of each head."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mlp import MLP
from edgeformer.models.gpt_neox import FAMILY
from edgeformer.models.gpt_neox import names as usual
from edgeformer.weights.binding import NameMap
from edgeformer.weights.parts import Cut, Stack


def computes(spec: Decoder) -> Decoder:
    """GELU by tanh (Pythia has the exact form), four times the width inside, biases, a head of its own, no RoPE scaling."""
    spec = everywhere(spec, MLP, act="gelu_tanh", hidden=4 * spec.width)
    return replace(plain_rope(everywhere(spec, GQA, bias=True, output_bias=True)), tied=False)


def names(spec: Decoder) -> NameMap:
    """Canonical name -> stored name: mlx-lm's blocks are `h`."""

    def renamed(entry: str | Cut | Stack) -> str | Cut | Stack:
        if isinstance(entry, str):
            return entry.replace("layers.", "h.", 1)
        return replace(entry, name=entry.name.replace("layers.", "h.", 1))

    return {ours: renamed(entry) for ours, entry in usual(spec).items()}


TYPE = MlxType(FAMILY, computes, names=names, head="no head outside")
