"""Plain two-layer feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from edgeformer.layers.activation import Activation, activate, activation_params, require_activation
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Fold, Layer, Linear, Sizes, resized_ffn


@dataclass(frozen=True, kw_only=True)
class MLP(Layer):
    """y = down(act(up(x))) (Vaswani et al. 2017, section 3.3)."""

    kind: ClassVar[str] = "mlp"
    resizes: ClassVar[frozenset[str]] = frozenset(("ffn",))
    reads: ClassVar[tuple[str, ...]] = ("up",)
    hidden: int
    act: Activation = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        self.require_positive(hidden=self.hidden)
        require_activation(self, self.act)

    def resized(self, sizes: Sizes, width: int) -> Self:
        return replace(self, hidden=resized_ffn(self.hidden, sizes, width))

    def ffn_width(self) -> int:
        return self.hidden

    def params(self, width: int) -> dict[str, Declaration]:
        return {
            "up": Linear(width, self.hidden, self.bias),
            "down": Linear(self.hidden, width, self.bias, residual=True),
            **activation_params(self.act, self.hidden),
        }

    def folds(self) -> tuple[Fold, ...]:
        return (Fold("up", ("down",)),) if self.act == "relu" else ()  # others don't commute with positive scales

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return p.down(activate(ops, p, self.act, p.up(x)))
