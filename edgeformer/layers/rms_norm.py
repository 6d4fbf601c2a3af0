"""Root mean square norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Norm, Vector


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """y = x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    kind: ClassVar[str] = "rms_norm"
    eps: float = 1e-6

    def params(self, width: int) -> dict[str, Declaration]:
        return {"weight": Vector(width)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return ops.rms_norm(x, p.weight, eps=self.eps)

    def add(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, d, p.weight, eps=self.eps)
