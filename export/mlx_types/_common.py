"""What the Llama-shaped model types of mlx-lm have in common, and the error that says why a spec is none of them."""

from __future__ import annotations

import math
from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.spec import Model


class Unmapped(Exception):
    """The spec says something that this model type of mlx-lm can't be told."""


def need(rule: bool, reason: str) -> None:
    """Raise `Unmapped` with the reason unless the rule holds."""
    if not rule:
        raise Unmapped(reason)


def llama_shaped(spec: Model) -> tuple[dict[str, Any], list[GQA], GLU]:
    """The config that all Llama-shaped types share, each block's attention, and the feed-forward network.

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
    need(
        ffn.act == "silu", f"mlx-lm's feed-forward network is SwiGLU whatever the config says, this one's is {ffn.act}"
    )
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
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied,
        "attention_dropout": first.dropout,
        "initializer_range": spec.init.std,
        **_rope(first.position, first.head_dim),  # type: ignore[arg-type]
    }
    return config, attentions, ffn


def no_windows(attentions: list[GQA], context: int, kind: str) -> None:
    """Raise `Unmapped` if a window would be ignored; one as wide as the context hides nothing."""
    for window in {a.mask.window for a in attentions} - {None}:
        need(window >= context, f"there are sliding windows, which mlx-lm's {kind} can't be told")


def _rope(rope: Rope, head_dim: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` in the spelling that mlx-lm reads; it ignores transformers 5's for most types."""
    need(rope.dim == head_dim, f"only {rope.dim} of {head_dim} channels are rotated")
    out: dict[str, Any] = {"rope_theta": rope.theta}
    match rope.scaling:
        case None:
            return out
        case LinearScaling(factor=factor):
            scaling: dict[str, Any] = {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            scaling = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }
        case YarnScaling() as s:
            usual = 0.1 * math.log(s.factor) + 1 if s.factor > 1 else 1.0
            need(
                abs(s.temperature - usual) < 1e-6,
                "mlx-lm computes YaRN's temperature from the factor, this one differs",
            )
            need(s.truncate, "mlx-lm rounds YaRN's ramp to whole channels (truncate)")
            scaling = {
                "rope_type": "yarn",
                "factor": s.factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "original_max_position_embeddings": s.original_context,
            }
        case other:
            raise Unmapped(f"mlx-lm's {other.kind.removeprefix('rope_')} rope scaling is another than transformers'")
    return out | {"rope_scaling": scaling}
