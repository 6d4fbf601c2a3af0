"""Shared by mlx-lm's Llama-shaped model types."""

from __future__ import annotations

import math
from typing import Any

from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.models import _shape
from edgeformer.models._shape import Unmapped, need
from edgeformer.spec import Model


def llama_shaped(spec: Model) -> tuple[dict[str, Any], list[GQA], GLU]:
    """The config keys shared by mlx-lm's Llama-shaped types, each block's attention, and the feed-forward network.

    Raises:
        Unmapped: the spec is not Llama-shaped.
    """
    config, attentions, ffn = _shape.llama_shaped(spec)
    need(ffn.act == "silu", f"mlx-lm's feed-forward network is always SwiGLU; this spec's activation is {ffn.act}")
    first = attentions[0]
    rope = _rope(first.position, first.head_dim)  # type: ignore[arg-type]
    return config | {"hidden_act": "silu", **rope}, attentions, ffn


def no_windows(attentions: list[GQA], context: int, kind: str) -> None:
    """Raise `Unmapped` if a sliding window would be ignored; one as wide as the context has no effect."""
    for window in {a.mask.window for a in attentions}:
        need(window is None or window >= context, f"mlx-lm's {kind} doesn't support sliding windows")


def _rope(rope: Rope, head_dim: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` as mlx-lm reads them; for most types it ignores transformers 5's spelling."""
    need(rope.dim == head_dim, f"RoPE is partial, on {rope.dim} of {head_dim} channels")
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
                "mlx-lm derives YaRN's temperature from its factor; this spec's temperature differs",
            )
            need(s.truncate, "mlx-lm rounds YaRN's ramp to whole channels; this spec doesn't (truncate)")
            scaling = {
                "rope_type": "yarn",
                "factor": s.factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "original_max_position_embeddings": s.original_context,
            }
        case other:
            raise Unmapped(f"mlx-lm's {other.kind.removeprefix('rope_')} RoPE scaling differs from transformers'")
    return out | {"rope_scaling": scaling}
