"""MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa's positions, and T5's relative biases, shared by all layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.models import roberta
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import read_head
from edgeformer.models._names import Names, named, unused_bias, with_own_bias
from edgeformer.models.bert import bert_like, has_mlm
from edgeformer.models.roberta import HEADS, TIED, UNPREFIXED, roberta_config
from edgeformer.spec import Model

NAMES: Names = (
    roberta.NAMES
    | {"positions.0.table.weight": "encoder.relative_attention_bias.weight"}
    | named(
        {
            **{f"attention.{n}": f"attention.attn.{n}" for n in "qkvo"},
            "attention_norm": "attention.LayerNorm",
        },
        "layers.{i}.",
        "encoder.layer.{i}.",
    )
)
PREFIXES = ("mpnet.", "")
IGNORED = {
    r"embeddings\.position_ids$": "",
    r"^lm_head\.bias$": "",  # see `names`
    r"^(mpnet\.)?pooler\.": "the pooler, which this head doesn't read",
}
PADDING = 1
"""transformers counts positions from this id's, whatever pad_token_id is."""


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    return with_own_bias(spec, NAMES, "lm_head.decoder.bias")


def spec(config: HfConfig) -> Encoder:
    """An MPNet encoder."""
    config.expect(relative_attention_num_buckets=32)  # transformers computes with 32, whatever the table has
    dropout = config.number("hidden_dropout_prob", 0.1)
    head = read_head(config, HEADS, pooled=HeadTransform(act="tanh"), dropout=dropout, drops_input=True)
    model = bert_like(config, has_mlm(config, "lm_head.dense.weight"), head, PADDING, token_types=0)
    block = model.blocks[0]
    assert isinstance(block, PostNormBlock) and isinstance(block.attention, GQA)
    biased = replace(block.attention, position=RelativeBias(heads=block.attention.heads))
    return replace(model, blocks=(replace(block, attention=biased),) * len(model.blocks))


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    made = roberta_config(spec, "mpnet", "MPNet")
    return {k: v for k, v in made.items() if k not in ("type_vocab_size", "classifier_dropout")}


FAMILY = Family(
    spec,
    names,
    config=config,
    prefixes=PREFIXES,
    unprefixed=UNPREFIXED,
    heads=HEADS,
    ignored=IGNORED,
    tied=TIED,
    copies=unused_bias("lm_head.bias"),
)
