"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT with narrow embeddings and without a pooler. Generators have a masked-token
head; discriminators are built without their head of pre-training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.models import bert
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import class_of, read_head
from edgeformer.models._inverse import model_of, of_class
from edgeformer.models._names import Names, named
from edgeformer.models.bert import RENAMED, bert_config, bert_like, has_mlm, head_dropout
from edgeformer.spec import Model

NAMES: Names = (
    bert.NAMES
    | {"mlm_bias": "generator_lm_head.bias", "head.weight": "generator_lm_head.weight"}
    | named(
        {
            "project_in": "embeddings_project",
            "mlm.dense": "generator_predictions.dense",
            "mlm.norm": "generator_predictions.LayerNorm",
            "classifier.transform.dense": "classifier.dense",
            "classifier.out": "classifier.out_proj",
        }
    )
)
PREFIXES = ("electra.", "")
TIED = {"generator_lm_head.weight": "embed.weight"}
UNPREFIXED = ("generator_", "discriminator_predictions.", "classifier.", "qa_outputs.")
HEADS = tuple(f"^{beginning}" for beginning in UNPREFIXED)
IGNORED = {
    r"embeddings\.position_ids$": "",
    r"^discriminator_predictions\.": "the discriminator's head of pre-training; edgeformer builds the encoder",
}


def spec(config: HfConfig) -> Encoder:
    """An ELECTRA encoder."""
    config.expect(position_embedding_type="absolute")
    config.ignore("summary_last_dropout")
    narrow, width = config.size("embedding_size", 128), config.size("hidden_size", 256)
    head = read_head(config, HEADS, pooled=HeadTransform(act="gelu"), dropout=head_dropout(config), drops_input=True)
    mlm_weight = "generator_predictions.dense.weight"
    model = bert_like(config, has_mlm(config, mlm_weight, ("ForMaskedLM",)), head, usual=(256, 4, 1024))
    mlm = None
    if model.mlm is not None:
        mlm = MlmHead(width=narrow, norm=model.mlm.norm, tied=model.mlm.tied)
    return replace(
        model,
        pooler=False,
        embed_width=None if narrow == width else narrow,
        mlm=mlm,
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Encoder)
    return (
        of_class("electra", class_of(model, "Electra"))
        | bert_config(model)
        | {"embedding_size": model.embed_width or model.width}
    )


FAMILY = Family(
    spec,
    NAMES,
    config=config,
    prefixes=PREFIXES,
    unprefixed=UNPREFIXED,
    heads=HEADS,
    ignored=IGNORED,
    tied=TIED,
    renamed=RENAMED,
)
