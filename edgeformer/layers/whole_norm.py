"""Norm of queries or keys over all heads at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Norm


@dataclass(frozen=True, kw_only=True)
class WholeNorm(Norm):
    """Apply `norm` to the projected query or key before splitting into heads (OLMo Team 2024, arXiv 2501.00656, section 3.2)."""

    kind: ClassVar[str] = "whole_norm"
    over_heads: ClassVar[bool] = True
    norm: Norm

    def params(self, width: int) -> dict[str, Declaration]:
        return self.norm.params(width)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return self.norm.apply(ops, p, x)

    def on_heads(self, ops: Ops, p: LayerHandle, x: Tensor, heads: int, dim: int) -> Tensor:
        return self.norm.apply(ops, p, x)
