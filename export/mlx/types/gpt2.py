"""mlx-lm's `gpt2`: GPT-2's own config, with what it leaves out hard-coded."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.exporters.mlx.types._type import MlxType, everywhere
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mlp import MLP
from edgeformer.models._inverse import Config
from edgeformer.models.gpt2 import FAMILY


def computes(spec: Decoder) -> Decoder:
    """GELU by tanh, a tied head, an inner width of four times n_embd."""
    return replace(everywhere(spec, MLP, act="gelu_tanh", hidden=4 * spec.width), tied=True)


def config(spec: Decoder, config: Config) -> Config:
    """The keys that mlx-lm reads."""
    left = ("n_inner", "tie_word_embeddings")
    return {key: value for key, value in config.items() if key not in left} | {"n_ctx": spec.context}


TYPE = MlxType(FAMILY, computes, config=config)
