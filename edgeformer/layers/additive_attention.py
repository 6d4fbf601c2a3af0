"""Additive attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.mask import Mask
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear, Node, Vector


@dataclass(frozen=True, kw_only=True)
class AdditiveAttention(Layer):
    """score = vᵀ tanh(W q + U k), a vector v per head (Bahdanau et al. 2014, arXiv 1409.0473, section A.1.2).

    For comparison with dot-product attention: it materialises [heads, queries, keys, head_dim], and has no fused kernel.
    """

    kind: ClassVar[str] = "additive_attention"
    same_input: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"),)
    reads: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    heads: int
    head_dim: int
    mask: Mask = Mask()
    bias: bool = False

    def __post_init__(self) -> None:
        self.require_positive(heads=self.heads, head_dim=self.head_dim)

    def params(self, width: int) -> dict[str, Declaration]:
        inner = self.heads * self.head_dim
        maps: dict[str, Declaration] = {name: Linear(width, inner, self.bias) for name in "qkv"}
        return maps | {"score": Vector(inner, fill=0.1), "o": Linear(inner, width, self.bias, residual=True)}

    def cache(self) -> dict[str, tuple[int, int]]:
        return {name: (self.heads, self.head_dim) for name in ("k", "v")} if self.mask.causal else {}

    def per_step(self) -> tuple[Node, ...]:
        return (self.mask,)

    def flops_per_key(self) -> int:
        return 5 * self.heads * self.head_dim

    def keys_seen(self, position: int, length: int) -> int:
        return self.mask.seen(position, length)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        q, k, v = (ops.split_heads(y, self.heads, self.head_dim) for y in ops.linears(x, p.q, p.k, p.v))
        slot = step.slot(p) if self.mask.causal else None
        if slot is not None:
            k, v = slot.append(k=k, v=v)
        together = ops.tanh(ops.expand_dims(q, 3) + ops.expand_dims(k, 2))  # [B, H, T, S, K]
        vector = ops.reshape(ops.f32(p.score), (self.heads, 1, 1, self.head_dim))
        scores = ops.sum(ops.f32(together) * vector, -1)
        mask = ops.additive_mask(step.tables[self.mask], scores)
        y = ops.weigh(scores if mask is None else scores + mask, v)
        return p.o(ops.merge_heads(y, self.heads * self.head_dim))
