"""mT5 (Xue et al. 2020, arXiv 2010.11934): T5 1.1's gated FFN with an untied head, even if the config leaves these keys out."""

from __future__ import annotations

from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models.t5 import IGNORED, NAMES, TIED, names, t5_like

__all__ = ["IGNORED", "NAMES", "TIED", "names", "spec"]


def spec(config: HfConfig) -> EncoderDecoder:
    """An mT5 encoder–decoder."""
    return t5_like(config, feed_forward="gated-gelu", tied=False)


FAMILY = Family(spec, names, ignored=IGNORED, tied=TIED)
