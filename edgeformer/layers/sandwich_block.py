"""Block with norms before and after attention and FFN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.stack import add_norm
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Fold, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class SandwichBlock(Layer):
    """x += out_norm(attention(norm(x))); x += out_norm(ffn(norm(x))) (Ding et al. 2021, CogView; Gemma 2 and 3, GLM-4)."""

    kind: ClassVar[str] = "sandwich_block"
    attention: Layer
    ffn: Layer
    norm: Norm
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "attention_norm": Sub(self.norm, width),
            "attention": Sub(self.attention, width),
            "attention_out_norm": Sub(self.norm, width),
            "ffn_norm": Sub(self.norm, width),
            "ffn": Sub(self.ffn, width),
            "ffn_out_norm": Sub(self.norm, width),
        }
        return params | {"dropout": Dropout(self.dropout)} if self.dropout else params

    def folds(self) -> tuple[Fold, ...]:
        children = {"attention": self.attention, "ffn": self.ffn}
        return tuple(
            Fold(f"{name}_norm", tuple(f"{name}.{n}" for n in layer.reads))
            for name, layer in children.items()
            if layer.reads
        )

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        x, h = add_norm(p.attention_norm, x, d)
        d = p.attention_out_norm(p.attention(h, step))
        x, h = add_norm(p.ffn_norm, x, p.dropout(d) if self.dropout else d)
        d = p.ffn_out_norm(p.ffn(h))
        return x, p.dropout(d) if self.dropout else d
