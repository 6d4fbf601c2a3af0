"""BERT encoders (Devlin et al. 2019, arXiv 1810.04805), and sentence-transformers models built on them."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.head import Head
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.layers.mlp import MLP
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import class_of, class_suffix, head_config, read_head
from edgeformer.models._inverse import attention_in, block_of, epsilon, model_of, of_class, part
from edgeformer.models._names import Names, named, unused_bias, with_own_bias
from edgeformer.models._shape import hf_activation
from edgeformer.spec import Init, Model

NAMES: Names = (
    {"mlm_bias": "cls.predictions.bias", "head.weight": "cls.predictions.decoder.weight"}
    | named(
        {
            "embed": "embeddings.word_embeddings",
            "position_embed.table": "embeddings.position_embeddings",
            "type_embed": "embeddings.token_type_embeddings",
            "embed_norm": "embeddings.LayerNorm",
            "pooler": "pooler.dense",
            "classifier.transform.dense": "pooler.dense",
            "classifier.out": "classifier",
            "classifier.token_out": "classifier",
            "classifier.span_out": "qa_outputs",
            "mlm.dense": "cls.predictions.transform.dense",
            "mlm.norm": "cls.predictions.transform.LayerNorm",
        }
    )
    | named(
        {
            "attention.q": "attention.self.query",
            "attention.k": "attention.self.key",
            "attention.v": "attention.self.value",
            "attention.o": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "ffn.up": "intermediate.dense",
            "ffn.down": "output.dense",
            "ffn_norm": "output.LayerNorm",
        },
        "layers.{i}.",
        "encoder.layer.{i}.",
    )
)
PREFIXES = ("bert.", "")
IGNORED = {
    r"embeddings\.position_ids$": "",  # 0 .. n-1, a buffer of old checkpoints
    r"^cls\.predictions\.bias$": "",  # see `names`
    r"^cls\.seq_relationship\.": "the next-sentence head of pre-training; edgeformer builds the masked-token head",
    r"^(bert\.)?pooler\.": "the pooler, which this head doesn't read",
}
TIED = {"cls.predictions.decoder.weight": "embed.weight", "cls.predictions.decoder.bias": "mlm_bias"}
UNPREFIXED = ("cls.", "classifier.", "qa_outputs.")
HEADS = (r"^cls\.", r"^classifier\.", r"^qa_outputs\.")
RENAMED = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}  # files from before 2019


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    return with_own_bias(spec, NAMES, "cls.predictions.decoder.bias")


def spec(config: HfConfig) -> Encoder:
    """A BERT encoder."""
    config.expect(position_embedding_type="absolute")
    config.expect(pooler_type="first_token_transform")
    config.ignore("directionality", "pooler_fc_size", "pooler_num_attention_heads")
    config.ignore("pooler_num_fc_layers", "pooler_size_per_head")
    head = read_head(config, HEADS, pooled=HeadTransform(act="tanh"), dropout=head_dropout(config))
    return bert_like(config, has_mlm(config, "cls.predictions.transform.dense.weight"), head)


def head_dropout(config: HfConfig) -> float:
    """The dropout of a head while training."""
    said = config.optional_number("classifier_dropout")
    return config.number("hidden_dropout_prob", 0.1) if said is None else said


def bert_like(
    config: HfConfig,
    mlm: bool,
    head: Head | None,
    padding: int | None = None,
    *,
    token_types: int | None = None,
    usual: tuple[int, int, int] = (768, 12, 3072),
) -> Encoder:
    """BERT's architecture.

    Args:
        config: the config.
        mlm: whether it has a masked-token head, which excludes `head`.
        head: a task's head.
        padding: the padding token's id, if positions are counted from it (RoBERTa).
        token_types: number of them, where the config has no key for it.
        usual: width, heads and hidden size of the family's default model.
    """
    width = config.size("hidden_size", usual[0])
    context, dropout = config.size("max_position_embeddings", 512), config.number("hidden_dropout_prob", 0.1)
    norm, offset = LayerNorm(eps=config.number("layer_norm_eps", 1e-12)), 0 if padding is None else padding + 1
    act, std = config.activation("hidden_act", "gelu"), config.number("initializer_range", 0.02)
    tied = config.flag("tie_word_embeddings", True)
    block = encoder_block(
        width,
        config.size("num_attention_heads", usual[1]),
        MLP(hidden=config.size("intermediate_size", usual[2]), act=act),
        norm,
        attention_dropout=config.number("attention_probs_dropout_prob", 0.1),
        dropout=dropout,
    )
    return Encoder(
        vocab=config.size("vocab_size", 30_522),
        width=width,
        context=context - offset,
        counts_padding=padding is None,
        init=Init(std=std),
        blocks=(block,) * config.layers("num_hidden_layers", 12),
        embed_norm=norm,
        positions=Learned(count=context - offset, offset=offset),
        token_types=config.size("type_vocab_size", 2) if token_types is None else token_types,
        pooler=head is None and has_pooler(config),
        classifier=head,
        mlm=MlmHead(width=width, norm=norm, act="gelu" if padding is not None else act, tied=tied)
        if mlm and head is None
        else None,
        dropout=dropout,
    )


def encoder_block(
    width: int, heads: int, ffn: MLP, norm: LayerNorm, *, attention_dropout: float, dropout: float
) -> PostNormBlock:
    """The block of BERT and its descendants: post-norm, with bidirectional attention and an FFN."""
    attention = GQA(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        mask=Mask(causal=False),
        bias=True,
        output_bias=True,
        dropout=attention_dropout,
    )
    return PostNormBlock(attention=attention, ffn=ffn, norm=norm, dropout=dropout)


def has_mlm(config: HfConfig, weight: str, classes: tuple[str, ...] = ("ForMaskedLM", "ForPreTraining")) -> bool:
    """Whether the checkpoint stores a masked-token head, which has a weight of this name; for a config alone, whether its class
    has one."""
    if config.without_head:
        return False
    if config.stored is not None:
        return any(name == weight or name.endswith("." + weight) for name in config.stored)
    return class_suffix(config) in classes


def has_pooler(config: HfConfig) -> bool:
    """Whether the checkpoint stores a pooler; for a config alone, whether its class has one."""
    if config.stored is not None:
        return any(".pooler." in f".{name}" for name in config.stored)
    return class_suffix(config) not in ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Encoder)
    both = "BertForPreTraining" if model.mlm and model.pooler else class_of(model, "Bert")
    return of_class("bert", both) | bert_config(model)


def bert_config(spec: Encoder) -> dict[str, Any]:
    """The keys that BERT and its descendants share."""
    block = block_of(spec, PostNormBlock)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * spec.width, act="gelu")
    return (
        epsilon(block.norm, "layer_norm_eps")
        | head_config(spec)
        | {
            "hidden_size": spec.width,
            "num_attention_heads": a.heads,
            "num_hidden_layers": len(spec.blocks),
            "intermediate_size": ffn.hidden,
            "hidden_act": hf_activation(ffn.act),
            "vocab_size": spec.vocab,
            "max_position_embeddings": spec.context,
            "type_vocab_size": max(spec.token_types, 1),
            "hidden_dropout_prob": block.dropout,
            "attention_probs_dropout_prob": a.dropout,
            "initializer_range": spec.init.std,
            "tie_word_embeddings": spec.mlm is None or spec.mlm.tied,
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
    copies=unused_bias("cls.predictions.bias"),
)
