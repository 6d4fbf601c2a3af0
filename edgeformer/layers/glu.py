"""Gated feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from edgeformer.layers.activation import Activation, activate, activation_params, require_activation
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Fold, Layer, Linear, Sizes, resized_ffn


@dataclass(frozen=True, kw_only=True)
class GLU(Layer):
    """y = down(act(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202).

    act "sigmoid" is GLU (Dauphin et al. 2016), "identity" Bilinear, "relu" ReGLU, "gelu" GeGLU, "silu" SwiGLU.
    """

    kind: ClassVar[str] = "glu"
    resizes: ClassVar[frozenset[str]] = frozenset(("ffn",))
    same_input: ClassVar[tuple[tuple[str, ...], ...]] = (("gate", "up"),)
    reads: ClassVar[tuple[str, ...]] = ("gate", "up")
    hidden: int
    act: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        self.require_positive(hidden=self.hidden)
        require_activation(self, self.act)

    def resized(self, sizes: Sizes, width: int) -> Self:
        return replace(self, hidden=resized_ffn(self.hidden, sizes, width))

    def ffn_width(self) -> int:
        return self.hidden

    def params(self, width: int) -> dict[str, Declaration]:
        return {
            "gate": Linear(width, self.hidden, self.bias),
            "up": Linear(width, self.hidden, self.bias),
            "down": Linear(self.hidden, width, self.bias, residual=True),
            **activation_params(self.act, self.hidden),
        }

    def folds(self) -> tuple[Fold, ...]:
        return (Fold("up", ("down",)),)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        if not isinstance(self.act, str):
            gate, up = ops.linears(x, p.gate, p.up)
            return p.down(activate(ops, p, self.act, gate) * up)
        return ops.glu_ffn(x, p.gate, p.up, p.down, act=self.act)
