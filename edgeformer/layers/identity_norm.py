"""Identity in place of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Norm


@dataclass(frozen=True, kw_only=True)
class IdentityNorm(Norm):
    """y = x, for blocks without a norm (ModernBERT's first block, whose input is already normalised)."""

    kind: ClassVar[str] = "identity_norm"

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return x

    def add(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        total = x + d
        return total, total
