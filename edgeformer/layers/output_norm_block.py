"""Block that normalises the output of attention and FFN before the residual addition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class OutputNormBlock(Layer):
    """x += norm(attention(x)); x += norm(ffn(x)) (Liu et al. 2021, Swin V2; OLMo Team 2024, OLMo 2)."""

    kind: ClassVar[str] = "output_norm_block"
    attention: Layer
    ffn: Layer
    norm: Norm
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "attention": Sub(self.attention, width),
            "attention_norm": Sub(self.norm, width),
            "ffn": Sub(self.ffn, width),
            "ffn_norm": Sub(self.norm, width),
        }
        return params | {"dropout": Dropout(self.dropout)} if self.dropout else params

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        if d is not None:
            x = x + d
        y = p.attention_norm(p.attention(x, step))
        x = x + (p.dropout(y) if self.dropout else y)
        y = p.ffn_norm(p.ffn(x))
        return x, p.dropout(y) if self.dropout else y
