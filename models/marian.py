"""Marian (Junczys-Dowmunt et al. 2018, arXiv 1804.00344; Opus-MT): the original Transformer with sinusoidal positions."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.layers.sinusoidal import Sinusoidal
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import of_class
from edgeformer.models.bart import NAMES, PREFIXES, TIED, UNPREFIXED, bart_config, bart_like
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "UNPREFIXED", "config", "spec"]

IGNORED = {r"embed_positions\.weight$": ""}  # recomputed


def spec(config: HfConfig) -> EncoderDecoder:
    """A Marian encoder–decoder."""
    config.expect(share_encoder_decoder_embeddings=True, normalize_before=False, add_final_layer_norm=False)
    config.expect(normalize_embedding=False, static_position_embeddings=True, add_bias_logits=False)
    config.expect(decoder_vocab_size=config.size("vocab_size", 58_101))
    config.ignore("num_hidden_layers", "extra_pos_embeddings")  # the latter concerns the table, which is recomputed
    context = config.size("max_position_embeddings", 1024)
    return bart_like(config, Sinusoidal(count=context, interleaved=False), None, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    shape = of_class("marian", "MarianMTModel") | bart_config(spec)
    return shape | {"decoder_vocab_size": shape["vocab_size"], "share_encoder_decoder_embeddings": True}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, unprefixed=UNPREFIXED, ignored=IGNORED, tied=TIED)
