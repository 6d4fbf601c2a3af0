"""Attention with relative position vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.mask import Mask
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear, Node, Table


@dataclass(frozen=True, kw_only=True)
class ShawAttention(Layer):
    """score = q · (k + aᴷ) / √head_dim, out = Σ weight · (v + aⱽ), with learned vectors aᴷ and aⱽ per distance key − query,
    clipped to ± `furthest` and shared by all heads (Shaw et al. 2018, arXiv 1803.02155, eq. 3, 4). `values`: use aⱽ.
    """

    kind: ClassVar[str] = "shaw_attention"
    same_input: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"),)
    reads: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    heads: int
    head_dim: int
    furthest: int
    values: bool = True
    mask: Mask = Mask()
    bias: bool = False

    def __post_init__(self) -> None:
        self.require_positive(heads=self.heads, head_dim=self.head_dim, furthest=self.furthest)

    def params(self, width: int) -> dict[str, Declaration]:
        inner = self.heads * self.head_dim
        params: dict[str, Declaration] = {name: Linear(width, inner, self.bias) for name in "qkv"}
        params |= {"key_distance": Table(2 * self.furthest + 1, self.head_dim)}
        if self.values:
            params |= {"value_distance": Table(2 * self.furthest + 1, self.head_dim)}
        return params | {"o": Linear(inner, width, self.bias, residual=True)}

    def cache(self) -> dict[str, tuple[int, int]]:
        return {name: (self.heads, self.head_dim) for name in ("k", "v")} if self.mask.causal else {}

    def per_step(self) -> tuple[Node, ...]:
        return (self.mask,)

    def flops_per_key(self) -> int:
        return (8 if self.values else 6) * self.heads * self.head_dim

    def keys_seen(self, position: int, length: int) -> int:
        return self.mask.seen(position, length)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        q, k, v = (ops.split_heads(y, self.heads, self.head_dim) for y in ops.linears(x, p.q, p.k, p.v))
        slot = step.slot(p) if self.mask.causal else None
        if slot is not None:
            k, v = slot.append(k=k, v=v)
        distance = ops.expand_dims(step.keys, 1) - ops.expand_dims(step.queries, 2)  # [B or 1, T, S]
        distance = ops.clip(distance, -self.furthest, self.furthest) + self.furthest

        def by_query(y: Tensor) -> Any:  # swap heads and queries: a query's vectors are one matrix for all heads
            return ops.permute(y, (0, 2, 1, 3))

        q = q * self.head_dim**-0.5  # before the matmul, which could overflow fp16
        scores = q @ ops.permute(k, (0, 1, 3, 2))
        vectors = p.key_distance(distance)  # [B or 1, T, S, K]
        scores = scores + by_query(by_query(q) @ ops.permute(vectors, (0, 1, 3, 2)))
        scores = ops.f32(scores)
        mask = ops.additive_mask(step.tables[self.mask], scores)
        weights = ops.cast(ops.softmax(scores if mask is None else scores + mask), v)
        y = weights @ v
        if self.values:
            y = y + by_query(by_query(weights) @ p.value_distance(distance))
        return p.o(ops.merge_heads(y, self.heads * self.head_dim))
