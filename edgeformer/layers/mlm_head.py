"""Masked language model head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.activation import require_activation
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class MlmHead(Layer):
    """norm(act(dense(x))), with the embedding's `width`; the model then applies the output map (Devlin et al. 2019, BERT).

    `bias`: the dense map has a bias; `output_bias`: a bias per vocabulary token. `tied`: the output map is the embedding table.
    """

    kind: ClassVar[str] = "mlm_head"
    width: int
    norm: Norm
    act: str = "gelu"
    bias: bool = True
    output_bias: bool = True
    tied: bool = True

    def __post_init__(self) -> None:
        self.require_positive(width=self.width)
        require_activation(self, self.act)

    def params(self, width: int) -> dict[str, Declaration]:
        return {"dense": Linear(width, self.width, self.bias), "norm": Sub(self.norm, self.width)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        return p.norm(ops.activate(self.act, p.dense(x)))
