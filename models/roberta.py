"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT with positions that count real tokens, from after the padding id."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.learned import Learned
from edgeformer.models import bert
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import class_of, read_head
from edgeformer.models._inverse import model_of, of_class, part
from edgeformer.models._names import Names, unused_bias, with_own_bias
from edgeformer.models.bert import RENAMED, bert_config, bert_like, has_mlm, head_dropout
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "RENAMED", "TIED", "config", "spec"]

NAMES: Names = bert.NAMES | {
    "mlm_bias": "lm_head.bias",
    "head.weight": "lm_head.decoder.weight",
    **{f"mlm.dense.{kind}": f"lm_head.dense.{kind}" for kind in ("weight", "bias")},
    **{f"mlm.norm.{kind}": f"lm_head.layer_norm.{kind}" for kind in ("weight", "bias")},
    **{f"classifier.transform.dense.{kind}": f"classifier.dense.{kind}" for kind in ("weight", "bias")},
    **{f"classifier.out.{kind}": f"classifier.out_proj.{kind}" for kind in ("weight", "bias")},
}
PREFIXES = ("roberta.", "")
UNPREFIXED = ("lm_head.", "classifier.", "qa_outputs.")
HEADS = (r"^lm_head\.", r"^classifier\.", r"^qa_outputs\.")
TIED = {"lm_head.decoder.weight": "embed.weight", "lm_head.decoder.bias": "mlm_bias"}
IGNORED = {
    r"embeddings\.position_ids$": "",
    r"^lm_head\.bias$": "",  # see `names`
    r"^(roberta\.)?pooler\.": "the pooler, which this head doesn't read",
}


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    return with_own_bias(spec, NAMES, "lm_head.decoder.bias")


def spec(config: HfConfig) -> Encoder:
    """A RoBERTa encoder."""
    config.expect(position_embedding_type="absolute")
    padding = config.data.get("pad_token_id", 1)
    head = read_head(config, HEADS, pooled=HeadTransform(act="tanh"), dropout=head_dropout(config), drops_input=True)
    return bert_like(config, has_mlm(config, "lm_head.dense.weight"), head, 1 if padding is None else padding)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return roberta_config(spec, "roberta", "Roberta")


def roberta_config(spec: Model, model_type: str, prefix: str) -> dict[str, Any]:
    """RoBERTa's config under the name of one of its descendants, whose classes begin with `prefix`.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Encoder)
    offset = part(model.positions, Learned, count=1, offset=0).offset
    return (
        of_class(model_type, class_of(model, prefix))
        | bert_config(model)
        | {
            "max_position_embeddings": model.context + offset,
            "pad_token_id": max(offset - 1, 0),
        }
    )


FAMILY = Family(
    spec,
    names,
    config=config,
    prefixes=PREFIXES,
    unprefixed=UNPREFIXED,
    heads=HEADS,
    ignored=IGNORED,
    tied=TIED,
    renamed=RENAMED,
    common=True,
    copies=unused_bias("lm_head.bias"),
)
