"""Recognise a Llama-shaped decoder: the config that describes a spec, or why it doesn't fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.models._config import HF_ACTIVATIONS
from edgeformer.spec import Model, Node


class Unmapped(Exception):
    """The spec has a property that a config of this type can't express."""


def need(rule: bool, reason: str) -> None:
    """Raise `Unmapped` with the reason unless the rule holds."""
    if not rule:
        raise Unmapped(reason)


def only(node: Node, *fields: str) -> None:
    """Raise `Unmapped` if the node sets a field besides these: the caller doesn't know how to map it."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if field.name not in fields and value != field.default:
            raise Unmapped(f"{node.kind} has {field.name} = {value.kind if isinstance(value, Node) else value}")


def hf_activation(act: str | Node) -> str:
    """transformers' name of an activation.

    Raises:
        Unmapped: it is a layer with parameters of its own.
    """
    if not isinstance(act, str):
        raise Unmapped(f"transformers has no name for the activation {act.kind}")
    return HF_ACTIVATIONS.get(act, act)


def llama_shaped(spec: Model) -> tuple[dict[str, Any], list[GQA], GLU]:
    """The config that all Llama-shaped types share (without activation and rotation, which configs spell differently), each
    block's attention, and the feed-forward network.

    Raises:
        Unmapped: the spec isn't Llama-shaped.
    """
    need(isinstance(spec, Decoder), f"it is of kind {spec.kind}, not a decoder")
    assert isinstance(spec, Decoder)
    need(spec.positions is None, "positions are added at the embedding")
    only(spec, "vocab", "width", "context", "init", "blocks", "norm", "tied", "dropout")
    norm, blocks = spec.norm, spec.blocks
    need(type(norm) is RMSNorm, "there is no final RMSNorm")
    assert isinstance(norm, RMSNorm)
    attentions: list[GQA] = []
    for block in dict.fromkeys(blocks):
        need(isinstance(block, Block), f"blocks are {block.kind}")
        assert isinstance(block, Block)
        need(block.norm == norm, "norms differ")
        only(block, "attention", "ffn", "norm", "dropout")
        need(type(block.attention) is GQA, f"attention is {block.attention.kind}")
        need(type(block.ffn) is GLU and block.ffn == blocks[0].ffn, "feed-forward networks differ or are not gated")  # type: ignore[attr-defined]
        need(isinstance(block.ffn.act, str), "the activation has parameters")  # type: ignore[attr-defined]
    for block in blocks:
        attentions.append(block.attention)  # type: ignore[attr-defined]
    first, ffn = attentions[0], blocks[0].ffn  # type: ignore[attr-defined]
    for a in attentions:
        need(
            (a.heads, a.kv_heads, a.head_dim, a.bias, a.output_bias, a.qk_norm, a.position, a.dropout)
            == (first.heads, first.kv_heads, first.head_dim, first.bias, first.output_bias, first.qk_norm, first.position,
                first.dropout),
            "attention differs from block to block",
        )  # fmt: skip
        need(a.scale is None or a.scale == a.head_dim**-0.5, f"scores are scaled by {a.scale}")
        only(
            a, "heads", "kv_heads", "head_dim", "position", "mask", "qk_norm", "bias", "output_bias", "scale", "dropout"
        )
        need(a.mask.causal, "attention is not causal")
        only(a.mask, "causal", "window")
    need(type(first.position) is Rope, "positions are not half-split RoPE")
    config = {
        "hidden_size": spec.width,
        "num_hidden_layers": len(blocks),
        "intermediate_size": ffn.hidden,
        "num_attention_heads": first.heads,
        "num_key_value_heads": first.kv_heads,
        "head_dim": first.head_dim,
        "rms_norm_eps": norm.eps,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": spec.tied,
        "attention_dropout": first.dropout,
        "initializer_range": spec.init.std,
    }
    return config, attentions, ffn
