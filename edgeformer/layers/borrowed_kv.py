"""Attention to an earlier layer's keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.gqa import GQA
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Fold, SharedKV


@dataclass(frozen=True, kw_only=True)
class BorrowedKV(GQA):
    """`GQA` that uses the K/V an earlier `sharing_gqa` publishes under the name `source`, instead of its own.

    Cross-layer attention: Brandon et al. 2024, arXiv 2405.12981. It caches nothing, so the KV cache is one layer smaller.
    """

    kind: ClassVar[str] = "borrowed_kv"
    same_input: ClassVar[tuple[tuple[str, ...], ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ("q",)
    source: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.sinks is False and self.clip is None, "borrowed_kv supports neither sinks nor clip")

    def params(self, width: int) -> dict[str, Declaration]:
        return {k: v for k, v in super().params(width).items() if k not in ("k", "v", "k_norm")}

    def folds(self) -> tuple[Fold, ...]:
        return ()

    def cache(self) -> dict[str, tuple[int, int]]:
        return {}

    def borrows(self) -> SharedKV:
        return SharedKV(self.source, self.kv_heads, self.head_dim)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        k, v = step.shared[self.source]
        q = p.q(x)
        if self.qk_norm is not None:
            q = ops.norm_heads(p.q_norm, q, self.heads, self.head_dim)
        return p.o(self.attended(ops, p, q, k, v, step))
