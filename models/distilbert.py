"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT of half the depth, without token types and pooler."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.layers.mlp import MLP
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.sequence_classifier import SequenceClassifier
from edgeformer.layers.span_head import SpanHead
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import CLASSES, class_of, class_suffix, head_config, read_head
from edgeformer.models._inverse import attention_in, block_of, model_of, of_class, part
from edgeformer.models._names import Names, named
from edgeformer.models._shape import hf_activation
from edgeformer.models.bert import encoder_block, has_mlm
from edgeformer.spec import Init, Model

NAMES: Names = (
    {"mlm_bias": "vocab_projector.bias", "head.weight": "vocab_projector.weight"}
    | named(
        {
            "embed": "embeddings.word_embeddings",
            "position_embed.table": "embeddings.position_embeddings",
            "embed_norm": "embeddings.LayerNorm",
            "mlm.dense": "vocab_transform",
            "mlm.norm": "vocab_layer_norm",
            "classifier.transform.dense": "pre_classifier",
            "classifier.out": "classifier",
            "classifier.token_out": "classifier",
            "classifier.span_out": "qa_outputs",
        }
    )
    | named(
        {
            **{f"attention.{n}": f"attention.{n}_lin" for n in "qkv"},
            "attention.o": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "ffn.up": "ffn.lin1",
            "ffn.down": "ffn.lin2",
            "ffn_norm": "output_layer_norm",
        },
        "layers.{i}.",
        "transformer.layer.{i}.",
    )
)
PREFIXES = ("distilbert.", "")
TIED = {"vocab_projector.weight": "embed.weight"}
UNPREFIXED = ("vocab_", "pre_classifier.", "classifier.", "qa_outputs.")
HEADS = tuple(f"^{beginning}" for beginning in UNPREFIXED)


def spec(config: HfConfig) -> Encoder:
    """A DistilBERT encoder."""
    config.expect(tie_weights_=True)  # from the first code; today tie_word_embeddings decides
    config.ignore("sinusoidal_pos_embds")  # of the table's init
    width, heads, norm = config.size("dim", 768), config.size("n_heads", 12), LayerNorm(eps=1e-12)
    context, dropout = config.size("max_position_embeddings", 512), config.number("dropout", 0.1)
    act = config.activation("activation", "gelu")
    ffn = MLP(hidden=config.size("hidden_dim", 3072), act=act)
    attention_dropout = config.number("attention_dropout", 0.1)
    block = encoder_block(width, heads, ffn, norm, attention_dropout=attention_dropout, dropout=dropout)
    tied = config.flag("tie_word_embeddings", True)
    per_text = config.number("seq_classif_dropout", 0.2)
    per_span = config.number("qa_dropout", 0.1)
    whole = class_suffix(config) == CLASSES[SequenceClassifier]
    head = read_head(
        config, HEADS, pooled=HeadTransform(act="relu"), dropout=per_text if whole else dropout, span_dropout=per_span
    )
    mlm = MlmHead(width=width, norm=LayerNorm(eps=1e-12), act=act, tied=tied)
    return Encoder(
        vocab=config.size("vocab_size", 30_522),
        width=width,
        context=context,
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=(block,) * config.layers("n_layers", 6),
        embed_norm=norm,
        positions=Learned(count=context),
        classifier=head,
        mlm=mlm if head is None and has_mlm(config, "vocab_transform.weight") else None,
        dropout=dropout,
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Encoder)
    block = block_of(model, PostNormBlock)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="gelu")
    labels = head_config(model)
    drop = labels.pop("classifier_dropout", None)
    if isinstance(model.classifier, SpanHead):
        labels["qa_dropout"] = model.classifier.dropout
    if isinstance(model.classifier, SequenceClassifier):
        labels["seq_classif_dropout"] = drop
    return (
        of_class("distilbert", class_of(model, "DistilBert"))
        | labels
        | {
            "dim": model.width,
            "n_heads": a.heads,
            "n_layers": len(model.blocks),
            "hidden_dim": ffn.hidden,
            "activation": hf_activation(ffn.act),
            "vocab_size": model.vocab,
            "max_position_embeddings": model.context,
            "dropout": block.dropout,
            "attention_dropout": a.dropout,
            "initializer_range": model.init.std,
            "tie_word_embeddings": model.mlm is None or model.mlm.tied,
        }
    )


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, unprefixed=UNPREFIXED, heads=HEADS, tied=TIED)
