"""Recognising a spec: what a Llama-shaped decoder's config says, or why it is no such decoder."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.spec import Model


class Unmapped(Exception):
    """The spec says something that a config of this type can't be told."""


def need(rule: bool, reason: str) -> None:
    """Raise `Unmapped` with the reason unless the rule holds."""
    if not rule:
        raise Unmapped(reason)


def llama_shaped(spec: Model) -> tuple[dict[str, Any], list[GQA], GLU]:
    """The config that all Llama-shaped types share (without activation and rotation, which configs spell differently), each
    block's attention, and the feed-forward network.

    Raises:
        Unmapped: the spec isn't Llama-shaped.
    """
    need(isinstance(spec, Decoder), f"it is a {spec.kind}, no decoder")
    assert isinstance(spec, Decoder)
    need(spec.positions is None, "positions are added at the embedding")
    need(not spec.head_bias, "the head has a bias")
    norm, blocks = spec.norm, spec.blocks
    need(isinstance(norm, RMSNorm), "there is no final RMSNorm")
    assert isinstance(norm, RMSNorm)
    attentions: list[GQA] = []
    for block in dict.fromkeys(blocks):
        need(isinstance(block, Block), f"blocks are {block.kind}")
        assert isinstance(block, Block)
        need(block.norm == norm, "norms differ")
        need(block.cross is None, "blocks have cross-attention")
        need(isinstance(block.attention, GQA), f"attention is {block.attention.kind}")
        need(isinstance(block.ffn, GLU) and block.ffn == blocks[0].ffn, "feed-forward networks differ or are not gated")  # type: ignore[attr-defined]
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
        need(a.softcap is None, "scores are capped (softcap)")
        need(a.mask.causal, "attention is not causal")
    need(isinstance(first.position, Rope), "positions are not rotary")
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
