"""ALBERT (Lan et al. 2019, arXiv 1909.11942): BERT with one block for all layers, and narrow embeddings."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.layers.mlp import MLP
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import class_of, read_head
from edgeformer.models._inverse import model_of, of_class
from edgeformer.models._names import Names, named, unused_bias, with_own_bias
from edgeformer.models.bert import bert_config, encoder_block, has_mlm, has_pooler
from edgeformer.spec import Init, Model

NAMES: Names = (
    {"mlm_bias": "predictions.bias", "head.weight": "predictions.decoder.weight"}
    | named(
        {
            "embed": "embeddings.word_embeddings",
            "position_embed.table": "embeddings.position_embeddings",
            "type_embed": "embeddings.token_type_embeddings",
            "embed_norm": "embeddings.LayerNorm",
            "project_in": "encoder.embedding_hidden_mapping_in",
            "pooler": "pooler",
            "classifier.transform.dense": "pooler",
            "classifier.out": "classifier",
            "classifier.token_out": "classifier",
            "classifier.span_out": "qa_outputs",
            "mlm.dense": "predictions.dense",
            "mlm.norm": "predictions.LayerNorm",
        }
    )
    | named(
        {
            "attention.q": "attention.query",
            "attention.k": "attention.key",
            "attention.v": "attention.value",
            "attention.o": "attention.dense",
            "attention_norm": "attention.LayerNorm",
            "ffn.up": "ffn",
            "ffn.down": "ffn_output",
            "ffn_norm": "full_layer_layer_norm",
        },
        "layers.{i}.",
        "encoder.albert_layer_groups.{i}.albert_layers.0.",
    )
)
PREFIXES = ("albert.", "")
UNPREFIXED = ("predictions.", "classifier.", "qa_outputs.")
HEADS = (r"^predictions\.", r"^classifier\.", r"^qa_outputs\.")
TIED = {"predictions.decoder.weight": "embed.weight", "predictions.decoder.bias": "mlm_bias"}
IGNORED = {
    r"embeddings\.position_ids$": "",
    r"^predictions\.bias$": "",  # see `names`
    r"^sop_classifier\.": "the sentence-order head of pre-training; edgeformer builds the masked-token head",
    r"^(albert\.)?pooler\.": "the pooler, which this head doesn't read",
}


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    return with_own_bias(spec, NAMES, "predictions.decoder.bias")


def spec(config: HfConfig) -> Encoder:
    """An ALBERT encoder."""
    config.expect(inner_group_num=1, position_embedding_type="absolute")
    config.ignore("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks")
    config.ignore("layers_to_keep")
    width, heads = config.size("hidden_size", 4096), config.size("num_attention_heads", 64)
    context, dropout = config.size("max_position_embeddings", 512), config.number("hidden_dropout_prob", 0.0)
    norm, act = LayerNorm(eps=config.number("layer_norm_eps", 1e-12)), config.activation("hidden_act", "gelu_new")
    count, groups = config.layers("num_hidden_layers", 12), config.size("num_hidden_groups", 1)
    narrow, tied = config.size("embedding_size", 128), config.flag("tie_word_embeddings", True)
    ffn = MLP(hidden=config.size("intermediate_size", 16_384), act=act)
    attention_dropout = config.number("attention_probs_dropout_prob", 0.0)
    block = encoder_block(width, heads, ffn, norm, attention_dropout=attention_dropout, dropout=dropout)
    mlm = MlmHead(width=narrow, norm=LayerNorm(eps=1e-5), act=act, tied=tied)  # transformers' head has its own epsilon
    said = config.optional_number("classifier_dropout_prob", 0.1)
    head = read_head(config, HEADS, pooled=HeadTransform(act="tanh"), dropout=dropout if said is None else said)
    return Encoder(
        vocab=config.size("vocab_size", 30_000),
        width=width,
        context=context,
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=(block,) * groups,
        order=tuple(int(i / (count / groups)) for i in range(count)),
        embed_norm=norm,
        embed_width=narrow,
        positions=Learned(count=context),
        token_types=config.size("type_vocab_size", 2),
        pooler=head is None and has_pooler(config),
        classifier=head,
        mlm=mlm if head is None and has_mlm(config, "predictions.dense.weight") else None,
        dropout=dropout,
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Encoder)
    both = "AlbertForPreTraining" if model.mlm and model.pooler else class_of(model, "Albert")
    order = model.order or tuple(range(len(model.blocks)))
    return (
        of_class("albert", both)
        | {{"classifier_dropout": "classifier_dropout_prob"}.get(k, k): v for k, v in bert_config(model).items()}
        | {
            "embedding_size": model.embed_width or model.width,
            "num_hidden_layers": len(order),
            "num_hidden_groups": len(model.blocks),
            "inner_group_num": 1,
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
    copies=unused_bias("predictions.bias"),
)
