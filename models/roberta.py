"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT with positions that count real tokens, from after the padding id."""

from __future__ import annotations

from edgeformer.layers.encoder import Encoder
from edgeformer.models import bert
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._names import Names, with_own_bias
from edgeformer.models.bert import RENAMED, bert_like, has_mlm
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "RENAMED", "TIED", "spec"]

NAMES: Names = bert.NAMES | {
    "mlm_bias": "lm_head.bias",
    "head.weight": "lm_head.decoder.weight",
    **{f"mlm.dense.{kind}": f"lm_head.dense.{kind}" for kind in ("weight", "bias")},
    **{f"mlm.norm.{kind}": f"lm_head.layer_norm.{kind}" for kind in ("weight", "bias")},
}
PREFIXES = ("roberta.", "")
TIED = {"lm_head.decoder.weight": "embed.weight", "lm_head.decoder.bias": "mlm_bias"}
IGNORED = {
    r"embeddings\.position_ids$": "",
    r"^lm_head\.bias$": "",  # see `names`
    r"^classifier\.": "a classification head; edgeformer builds the encoder",
}


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    return with_own_bias(spec, NAMES, "lm_head.decoder.bias")


def spec(config: HfConfig) -> Encoder:
    """A RoBERTa encoder."""
    config.expect(position_embedding_type="absolute")
    config.ignore("classifier_dropout")
    padding = config.data.get("pad_token_id", 1)
    return bert_like(config, has_mlm(config, "lm_head.dense.weight"), 1 if padding is None else padding)


FAMILY = Family(spec, names, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, renamed=RENAMED)
