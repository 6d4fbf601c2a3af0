"""mlx-lm's `minicpm`: Llama with multipliers that depend on depth and width."""

from __future__ import annotations

from edgeformer.exporters.mlx.types._type import MlxType, everywhere, narrow_heads, scaling_keys
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models._inverse import Config
from edgeformer.models.minicpm import FAMILY


def computes(spec: Decoder) -> Decoder:
    """SwiGLU, head_dim from the width."""
    return narrow_heads(everywhere(spec, GLU, act="silu"))


def config(spec: Decoder, config: Config) -> Config:
    """With all multipliers as numbers, and a head of its own: mlx-lm scales only such logits."""
    depth, base = config["scale_depth"], config["dim_model_base"]
    return {
        **config,
        **scaling_keys(spec),
        "scale_depth": len(spec.blocks) ** 0.5 if depth is None else depth,
        "dim_model_base": spec.width if base is None else base,
        "tie_word_embeddings": False,
    }


TYPE = MlxType(FAMILY, computes, config=config, untied=True)
