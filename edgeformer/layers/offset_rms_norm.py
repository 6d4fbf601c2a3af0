"""Root mean square norm whose weight is an offset from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import T, Tensor
from edgeformer.spec import Declaration, Vector


@dataclass(frozen=True, kw_only=True)
class OffsetRMSNorm(RMSNorm):
    """y = x / sqrt(mean(x²) + eps) · (1 + weight) (Gemma Team 2024, arXiv 2403.08295)."""

    kind: ClassVar[str] = "offset_rms_norm"

    def params(self, width: int) -> dict[str, Declaration]:
        return {"weight": Vector(width, fill=0.0)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return ops.rms_norm(x, p.weight + 1.0, eps=self.eps)

    def add(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, d, p.weight + 1.0, eps=self.eps)

    def divided(self, tensors: dict[str, T], scale: T) -> dict[str, T]:
        return {name: (1 + x) / scale - 1 for name, x in tensors.items()}
