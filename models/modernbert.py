"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): RoPE, gated FFNs, pre-norm blocks, full attention in every third layer."""

from __future__ import annotations

from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.files.quoting import shown
from edgeformer.layers.block import Block
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.identity_norm import IdentityNorm
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.layers.rope import Rope
from edgeformer.layers.sequence_classifier import SequenceClassifier
from edgeformer.layers.span_head import SpanHead
from edgeformer.layers.token_classifier import TokenClassifier
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._heads import class_of, head_config, read_head
from edgeformer.models._inverse import (
    attention_in,
    attentions_in,
    block_of,
    epsilon,
    gated_in,
    heads,
    listed_windows,
    model_of,
    of_class,
    part,
    rotary,
    sizes,
)
from edgeformer.models._names import Names, halves, named, side_by_side
from edgeformer.models._rope import read_scaling
from edgeformer.models._shape import hf_activation
from edgeformer.models._windows import FULL, SLIDING, layer_types
from edgeformer.models.bert import has_mlm
from edgeformer.spec import Init, Model

PREFIXES = ("model.", "")
TIED = {"decoder.weight": "embed.weight"}
UNPREFIXED = ("head.", "decoder.", "classifier.")
HEADS = (r"^head\.", r"^decoder\.", r"^classifier\.")


def spec(config: HfConfig) -> Encoder:
    """A ModernBERT encoder."""
    config.ignore("deterministic_flash_attn", "initializer_cutoff_factor")
    config.ignore("sparse_pred_ignore_index", "sparse_prediction", "reference_compile", "repad_logits_with_grad")
    config.ignore("gradient_checkpointing", "position_embedding_type")
    width, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    count, context = config.layers("num_hidden_layers", 22), config.size("max_position_embeddings", 8192)
    eps = config.number("norm_eps", 1e-5)
    config.expect(layer_norm_eps=eps, is_causal=False, causal_mask=False)  # the first duplicates norm_eps
    norm = LayerNorm(eps=eps, bias=config.flag("norm_bias", False))
    every = config.size("global_attn_every_n_layers", 3)
    types = layer_types(config, count, [SLIDING if i % every else FULL for i in range(count)])
    reach, bias = config.size("local_attention", 128) // 2 + 1, config.flag("attention_bias", False)
    ropes = _ropes(config, width // heads, context)
    ffn = GLU(
        hidden=config.size("intermediate_size", 1152),
        act=config.activation("hidden_activation", "gelu"),
        bias=config.flag("mlp_bias", False),
    )
    dropout = config.number("mlp_dropout", 0.0)
    attentions = [
        GQA(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            position=ropes[kind],
            mask=Mask(causal=False, window=reach if kind == SLIDING else None),
            bias=bias,
            output_bias=bias,
            dropout=config.number("attention_dropout", 0.0),
        )
        for kind in types
    ]
    blocks = [  # the first block's input was already normalised after the embedding
        Block(attention=a, ffn=ffn, norm=norm, attention_norm=None if i else IdentityNorm(), dropout=dropout)
        for i, a in enumerate(attentions)
    ]
    act, dense_bias = config.activation("classifier_activation", "gelu"), config.flag("classifier_bias", False)
    transform = HeadTransform(act=act, bias=dense_bias, norm=norm)
    pooling, drop = config.take("classifier_pooling", "cls"), config.number("classifier_dropout", 0.0)
    if pooling not in ("cls", "mean"):
        raise ConfigError(f"{config.where}: classifier_pooling must be 'cls' or 'mean', got {shown(pooling)}")
    head = read_head(
        config,
        HEADS,
        pooled=transform,
        per_token=transform,
        pooling=pooling,
        dropout=drop,
        span_dropout=drop,
    )
    mlm = MlmHead(
        width=width,
        norm=norm,
        act=act,
        bias=dense_bias,
        output_bias=config.flag("decoder_bias", True),
        tied=config.flag("tie_word_embeddings", True),
    )
    return Encoder(
        vocab=config.size("vocab_size", 50_368),
        width=width,
        context=context,
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=tuple(blocks),
        norm=norm,
        embed_norm=norm,
        classifier=head,
        mlm=mlm if head is None and has_mlm(config, "head.dense.weight") else None,
        dropout=config.number("embedding_dropout", 0.0),
    )


def _ropes(config: HfConfig, head_dim: int, context: int) -> dict[str, Rope]:
    """The RoPE of each kind of layer."""
    named_ropes = config.take("rope_parameters", None) or {}
    usual = {FULL: config.number("global_rope_theta", 160_000.0)}
    usual[SLIDING] = config.optional_number("local_rope_theta", 10_000.0) or usual[FULL]
    ropes = {}
    for kind, theta in usual.items():
        data = dict(named_ropes.get(kind) or {})
        theta = float(data.pop("rope_theta", theta))
        ropes[kind] = Rope(dim=head_dim, theta=theta, scaling=read_scaling(config, data, context))
    return ropes


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    top = {
        "embed": "embeddings.tok_embeddings",
        "embed_norm": "embeddings.norm",
        "norm": "final_norm",
        "mlm.dense": "head.dense",
        "mlm.norm": "head.norm",
        "classifier.transform.dense": "head.dense",
        "classifier.transform.norm": "head.norm",
        "classifier.out": "classifier",
        "classifier.token_out": "classifier",
        "classifier.span_out": "classifier",
        "head": "decoder",
    }
    block = {"attention_norm": "attn_norm", "attention.o": "attn.Wo", "ffn_norm": "mlp_norm", "ffn.down": "mlp.Wo"}
    where = "layers.{i}."
    qkv = side_by_side(f"{where}attention", f"{where}attn.Wqkv", dict.fromkeys("qkv", spec.width))
    maps = named(block, where, where) | qkv | halves(f"{where}ffn", f"{where}mlp.Wi")
    return named(top) | {"mlm_bias": "decoder.bias"} | maps


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Encoder)
    block, a, ffn = block_of(model, Block), attention_in(model.blocks[0]), gated_in(model)
    norm, mlm = part(model.norm, LayerNorm, bias=False), model.mlm
    window, types = listed_windows(model)
    ropes = {kind: x.position for kind, x in zip(types, attentions_in(model), strict=True)}
    turned = {kind: rotary(ropes.get(kind), a.head_dim) for kind in (FULL, SLIDING)}
    head: dict[str, Any] = head_config(model)
    if mlm is not None:
        head |= {
            "classifier_activation": hf_activation(mlm.act),
            "classifier_bias": mlm.bias,
            "decoder_bias": mlm.output_bias,
        }
    task = model.classifier
    if isinstance(task, SequenceClassifier | TokenClassifier | SpanHead) and task.transform is not None:
        head |= {"classifier_activation": hf_activation(task.transform.act), "classifier_bias": task.transform.bias}
    if isinstance(task, SpanHead):
        head["classifier_dropout"] = task.dropout
    if isinstance(task, SequenceClassifier):
        head["classifier_pooling"] = task.pool.mode
    return (
        of_class("modernbert", class_of(model, "ModernBert"))
        | sizes(model)
        | heads(a, dim=False, groups=False)
        | epsilon(norm, "norm_eps")
        | head
        | {
            "intermediate_size": ffn.hidden,
            "hidden_activation": hf_activation(ffn.act),
            "attention_bias": a.bias,
            "mlp_bias": ffn.bias,
            "norm_bias": norm.bias,
            "layer_types": types,
            "local_attention": 128 if window is None else 2 * (window - 1),
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": keys["rope_theta"], **keys.get("rope_scaling", {})}
                for kind, keys in turned.items()
            },
            "global_rope_theta": turned[FULL]["rope_theta"],
            "local_rope_theta": turned[SLIDING]["rope_theta"],
            "mlp_dropout": block.dropout,
            "embedding_dropout": model.dropout,
            "tie_word_embeddings": mlm is None or mlm.tied,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, unprefixed=UNPREFIXED, heads=HEADS, tied=TIED)
