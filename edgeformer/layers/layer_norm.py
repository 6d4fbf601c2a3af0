"""Layer norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Norm, Vector


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """y = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias (Ba et al. 2016, arXiv 1607.06450).

    Without a bias: MPT, Cohere. With neither weight nor bias: OLMo (Groeneveld et al. 2024, section 2.1).
    """

    kind: ClassVar[str] = "layer_norm"
    eps: float = 1e-5
    weight: bool = True
    bias: bool = True

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {"weight": Vector(width)} if self.weight else {}
        return params | {"bias": Vector(width, fill=0.0)} if self.bias else params

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return ops.layer_norm(x, *self._vectors(p), eps=self.eps)

    def add(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_layer_norm(x, d, *self._vectors(p), eps=self.eps)

    def _vectors(self, p: LayerHandle) -> tuple[Any, Any]:
        return p.weight if self.weight else None, p.bias if self.bias else None
