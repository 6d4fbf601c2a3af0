"""What stands between hidden states and a head's output map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.activation import require_activation
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class HeadTransform(Layer):
    """norm(act(dense(x))), of the same width: BERT's pooler and RoBERTa's first map (tanh), ModernBERT's (GELU, a norm)."""

    kind: ClassVar[str] = "head_transform"
    act: str = "tanh"
    bias: bool = True
    norm: Norm | None = None

    def __post_init__(self) -> None:
        require_activation(self, self.act)

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {"dense": Linear(width, width, self.bias)}
        return params if self.norm is None else params | {"norm": Sub(self.norm, width)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        y = ops.activate(self.act, p.dense(x))
        return y if self.norm is None else p.norm(y)
