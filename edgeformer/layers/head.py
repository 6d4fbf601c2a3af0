"""The protocol of heads that replace an encoder's outputs by those of a task."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Layer

Shapes = dict[str, tuple[str | int, ...]]
TOKENS = ("batch_size", "sequence_length")


@dataclass(frozen=True, kw_only=True)
class Head(Layer):
    """A task's head. What its outputs mean (labels' names, whether several hold at once) is a companion of the model."""

    @abstractmethod
    def outputs(self) -> Shapes:
        """Output name -> shape, by Optimum's names."""

    @abstractmethod
    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Outputs of the final hidden states x [B, T, D], with mask int64 [B, T], 0 where padded."""
