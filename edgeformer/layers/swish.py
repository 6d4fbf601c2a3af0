"""Swish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Vector


@dataclass(frozen=True, kw_only=True)
class Swish(Layer):
    """x · sigmoid(beta · x) (Ramachandran et al. 2017, arXiv 1710.05941). `learned`: beta is a parameter with this initial value.

    beta = 1 is SiLU (activation "silu"), 1.702 quick GELU.
    """

    kind: ClassVar[str] = "swish"
    beta: float = 1.0
    learned: bool = False

    def params(self, width: int) -> dict[str, Declaration]:
        return {"beta": Vector(1, fill=self.beta)} if self.learned else {}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return x * ops.sigmoid(x * (p.beta if self.learned else self.beta))
