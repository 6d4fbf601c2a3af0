"""mlx-lm's `gemma3_text`: five sliding-window layers per full one, and a RoPE theta for each kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, scaling_keys
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.models._inverse import Config, effective, listed_windows
from edgeformer.models._shape import need
from edgeformer.models._windows import FULL, SLIDING
from edgeformer.models.gemma3_text import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU by tanh, no biases, no soft cap of the logits, full layers at a regular distance, and an embedding multiplier that is
    rounded to bfloat16 (as transformers has it for weights in bfloat16, and only for those)."""
    _, types = listed_windows(spec)
    need(
        types == _regular(len(types), _pattern(types)),
        "mlx-lm's gemma3_text has a full layer after every n sliding ones",
    )
    spec = everywhere(everywhere(spec, GLU, act="gelu_tanh"), GQA, bias=False, output_bias=False)
    return replace(spec, logit_softcap=None, embed_scale=_bfloat16(spec.width**0.5))


def config(spec: Decoder, config: Config) -> Config:
    """With the distance of full layers."""
    _, types = listed_windows(effective(spec))
    return {**config, **scaling_keys(spec), "sliding_window_pattern": _pattern(types)}


def _pattern(types: list[str]) -> int:
    need(FULL in types, "mlx-lm's gemma3_text needs a layer without a sliding window")
    return types.index(FULL) + 1


def _regular(count: int, pattern: int) -> list[str]:
    return [SLIDING if (i + 1) % pattern else FULL for i in range(count)]


def _bfloat16(value: float) -> float:
    """Rounded to nearest even."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))


TYPE = MlxType(FAMILY, computes, config=config)
