"""Layer norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.spec import Declaration, Norm, Vector


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """y = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias (Ba et al. 2016, arXiv 1607.06450)."""

    kind: ClassVar[str] = "layer_norm"
    eps: float = 1e-5
    bias: bool = True

    def params(self, width: int) -> dict[str, Declaration]:
        weight: dict[str, Declaration] = {"weight": Vector(width)}
        return weight | {"bias": Vector(width, fill=0.0)} if self.bias else weight

    def apply(self, ops: Any, p: Any, x: Any) -> Any:
        return ops.layer_norm(x, p.weight, p.bias if self.bias else None, eps=self.eps)

    def add(self, ops: Any, p: Any, x: Any, d: Any) -> tuple[Any, Any]:
        return ops.add_layer_norm(x, d, p.weight, p.bias if self.bias else None, eps=self.eps)
