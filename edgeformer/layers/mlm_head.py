"""What predicts masked tokens."""

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
    """norm(act(dense(x))), of the embedding's `width`; the model then multiplies with the embeddings (Devlin et al. 2019, BERT).

    `bias` is of the dense map, `output_bias` one per token of the vocabulary. `tied`: the embedding's table is the output map.
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
