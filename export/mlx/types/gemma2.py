"""mlx-lm's `gemma2`: norms before and after, soft caps."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, no_windows, plain_rope
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.models._inverse import attention_in
from edgeformer.models._shape import need
from edgeformer.models.gemma2 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU by tanh, a tied head, no sliding windows, no biases, no RoPE scaling; it can't load null for a soft cap."""
    capped = attention_in(spec.blocks[0]).softcap is not None and spec.logit_softcap is not None
    need(capped, "mlx-lm's gemma2 always caps scores and logits")
    spec = everywhere(everywhere(spec, GLU, act="gelu_tanh"), GQA, bias=False, output_bias=False)
    return replace(plain_rope(no_windows(spec)), tied=True)


TYPE = MlxType(FAMILY, computes)
