"""Per-head layer norm of queries or keys, with separate weights for every head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Norm, Vector


@dataclass(frozen=True, kw_only=True)
class HeadsLayerNorm(Norm):
    """Layer norm over a head's channels, then a weight (and bias) per head and channel (Cohere's Command R+; StableLM 2 12B)."""

    kind: ClassVar[str] = "heads_layer_norm"
    over_heads: ClassVar[bool] = True
    eps: float = 1e-5
    bias: bool = False

    def params(self, width: int) -> dict[str, Declaration]:
        weight: dict[str, Declaration] = {"weight": Vector(width)}
        return weight | {"bias": Vector(width, fill=0.0)} if self.bias else weight

    def on_heads(self, ops: Ops, p: LayerHandle, x: Tensor, heads: int, dim: int) -> Tensor:
        y = ops.layer_norm(ops.reshape(x, (0, -1, heads, dim)), None, None, eps=self.eps)
        y = ops.reshape(y, (0, -1, heads * dim)) * p.weight
        return y + p.bias if self.bias else y
