"""Attention from a decoder to the encoder's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.mask import Mask
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear


@dataclass(frozen=True, kw_only=True)
class CrossAttention(Layer):
    """Queries from the decoder, keys and values from `step.memory` (Vaswani et al. 2017, section 3.2.3).

    Keys and values are computed once per sequence: by the encoder's program when exported, on first use in training.
    """

    kind: ClassVar[str] = "cross_attention"
    heads: int
    head_dim: int
    bias: bool = False
    scale: float | None = None

    def params(self, width: int) -> dict[str, Declaration]:
        inner = self.heads * self.head_dim
        maps: dict[str, Declaration] = {name: Linear(width, inner, self.bias) for name in "qkv"}
        return maps | {"o": Linear(inner, width, self.bias, residual=True)}

    def once(self) -> dict[str, tuple[int, int]]:
        return {name: (self.heads, self.head_dim) for name in ("k", "v")}

    def remember(self, ops: Ops, p: LayerHandle, memory: Tensor) -> dict[str, Any]:
        """Compute keys and values [B, H, M, K] from the encoder's output [B, M, D]."""
        k, v = ops.linears(memory, p.k, p.v)
        return {"k": ops.split_heads(k, self.heads, self.head_dim), "v": ops.split_heads(v, self.heads, self.head_dim)}

    def flops_per_key(self) -> int:
        return 4 * self.heads * self.head_dim

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        slot = step.slot(p)

        def remembered() -> dict[str, Any]:
            assert step.memory is not None  # the encoder's output
            return p.remember(step.memory)

        stored = remembered() if slot is None else slot.once(remembered)
        mask = None
        if step.memory_valid is not None:
            mask = ops.mask(Mask(causal=False), step.queries, step.keys, step.memory_valid)
        y = ops.attention(
            ops.split_heads(p.q(x), self.heads, self.head_dim),
            stored["k"],
            stored["v"],
            mask,
            None,
            groups=1,
            scale=self.head_dim**-0.5 if self.scale is None else self.scale,
        )
        return p.o(ops.merge_heads(y, self.heads * self.head_dim))
