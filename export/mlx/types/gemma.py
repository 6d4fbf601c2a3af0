"""mlx-lm's `gemma`: norms that scale by 1 + w, scaled embeddings."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.models.gemma import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU in its exact form (transformers has the tanh approximation), a tied head, no biases, no RoPE scaling."""
    spec = everywhere(everywhere(spec, GLU, act="gelu"), GQA, bias=False, output_bias=False)
    return replace(plain_rope(spec), tied=True)


TYPE = MlxType(FAMILY, computes)
