"""Attention that shares its keys and values with later layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.gqa import GQA
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import SharedKV


@dataclass(frozen=True, kw_only=True)
class SharingGQA(GQA):
    """`GQA` that publishes its rotated K/V, past and new, under the name `shares` for later `borrowed_kv` layers.

    Cross-layer attention: Brandon et al. 2024, arXiv 2405.12981.
    """

    kind: ClassVar[str] = "sharing_gqa"
    shares: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sinks is False and self.clip is None, "sharing_gqa supports neither sinks nor clip")

    def publishes(self) -> SharedKV:
        return SharedKV(self.shares, self.kv_heads, self.head_dim)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        q, k, v = ops.linears(x, p.q, p.k, p.v)
        if self.qk_norm is not None:
            q = ops.norm_heads(p.q_norm, q, self.heads, self.head_dim)
            k = ops.norm_heads(p.k_norm, k, self.kv_heads, self.head_dim)
        k, v = (ops.split_heads(y, self.kv_heads, self.head_dim) for y in (k, v))
        position = self.rotation(step)
        k = k if position is None else ops.turn(k, position, self.head_dim)
        slot = step.slot(p) if self.mask.causal else None
        if slot is not None:
            k, v = slot.append(k=k, v=v)
        step.shared[self.shares] = (k, v)
        return p.o(self.attended(ops, p, q, k, v, step))
