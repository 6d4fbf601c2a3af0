"""Sentence embedding by pooling, as in sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Layer


def first_token(ops: Ops, x: Tensor) -> Tensor:
    """[B, T, D] -> [B, D]."""
    return ops.sum(ops.take(ops.permute(x, (1, 0, 2)), ops.arange(1, x)), 0)


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
        if self.mode == "cls":
            y = ops.f32(first_token(ops, x))
        else:  # the sum over a long text overflows fp16
            states = ops.f32(x)
            weights = ops.expand_dims(ops.cast(mask, states), 2)
            y = ops.sum(states * weights, 1) / (ops.sum(weights, 1) + 1e-9)
        return ops.cast(y * ops.rsqrt(ops.sum(y * y, -1, keep=True) + 1e-24) if self.normalize else y, x)
