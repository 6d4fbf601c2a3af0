"""Pre-norm transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.stack import add_norm
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Fold, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class Block(Layer):
    """x += attention(norm(x)); x += ffn(norm(x)) (Xiong et al. 2020; GPT-2, Llama). `cross` adds cross-attention in between.
    `residual_scale` multiplies the residual updates (Granite; MiniCPM, Hu et al. 2024). `attention_norm`, if given, replaces
    `norm` before attention.

    The residual stream is passed as a pair (x, d) meaning x + d, so that an addition and the next norm can be fused, also
    across block boundaries.
    """

    kind: ClassVar[str] = "block"
    attention: Layer
    ffn: Layer
    norm: Norm
    cross: Layer | None = None
    attention_norm: Norm | None = None
    residual_scale: float = 1.0
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "attention_norm": Sub(self.attention_norm or self.norm, width),
            "attention": Sub(self.attention, width),
        }
        if self.cross is not None:
            params |= {"cross_norm": Sub(self.norm, width), "cross": Sub(self.cross, width)}
        params |= {"ffn_norm": Sub(self.norm, width), "ffn": Sub(self.ffn, width)}
        return params | {"dropout": Dropout(self.dropout)} if self.dropout else params

    def folds(self) -> tuple[Fold, ...]:
        children = {"attention": self.attention, "ffn": self.ffn} | (
            {} if self.cross is None else {"cross": self.cross}
        )
        return tuple(
            Fold(f"{name}_norm", tuple(f"{name}.{n}" for n in layer.reads))
            for name, layer in children.items()
            if layer.reads
        )

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        def drop(y: Tensor) -> Any:
            y = p.dropout(y) if self.dropout else y
            return y if self.residual_scale == 1 else y * self.residual_scale

        x, h = add_norm(p.attention_norm, x, d)
        d = drop(p.attention(h, step))
        if self.cross is not None:
            x, h = add_norm(p.cross_norm, x, d)
            d = drop(p.cross(h, step))
        x, h = add_norm(p.ffn_norm, x, d)
        return x, drop(p.ffn(h))
