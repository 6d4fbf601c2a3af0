"""mT5 (Xue et al. 2020, arXiv 2010.11934): T5 1.1's gated FFN with an untied head, even if the config leaves these keys out."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import model_of
from edgeformer.models._shape import need
from edgeformer.models.t5 import IGNORED, NAMES, TIED, names, t5_config, t5_like
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "TIED", "config", "names", "spec"]


def spec(config: HfConfig) -> EncoderDecoder:
    """An mT5 encoder–decoder. transformers saves it as tied, whatever its head, and never scales the head's input."""
    config.ignore("scale_decoder_outputs")
    return t5_like(config, feed_forward="gated-gelu", tied=False, scaled=False)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, EncoderDecoder)
    need(model.logit_scale == 1, "mT5 never scales the head's input")
    return t5_config(spec, "mt5", "MT5ForConditionalGeneration")


FAMILY = Family(spec, names, config=config, ignored=IGNORED, tied=TIED, double_of="t5")
