"""Sentence embedding by pooling, as in sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Layer


@dataclass(frozen=True, kw_only=True)
class Pooling(Layer):
    """The mean over real tokens or the first token (`mode` "mean" or "cls"), L2-normalised if `normalize`.

    Reimers & Gurevych 2019 (Sentence-BERT), section 3.
    """

    kind: ClassVar[str] = "pooling"
    mode: str = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        self.require(self.mode in ("mean", "cls"), f"mode must be 'mean' or 'cls', got {self.mode!r}")

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, mask: Tensor) -> Tensor:
        """Pool x: [B, T, D] with mask: int64 [B, T]; returns [B, D]."""
        y = ops.f32(ops.first_token(x)) if self.mode == "cls" else ops.token_mean(x, mask)
        return ops.cast(ops.unit(y) if self.normalize else y, x)
