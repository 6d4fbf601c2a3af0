"""Post-norm transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.stack import add_norm
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class PostNormBlock(Layer):
    """x = norm(x + attention(x)); x = norm(x + ffn(x)) (Vaswani et al. 2017; BERT). `cross` adds cross-attention in between.

    `residual_scale` is DeepNorm's alpha: norm(alpha · x + ...) (Wang et al. 2022, arXiv 2203.00555; use with `deep_norm_init`).
    """

    kind: ClassVar[str] = "post_norm_block"
    attention: Layer
    ffn: Layer
    norm: Norm
    cross: Layer | None = None
    residual_scale: float = 1.0
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "attention": Sub(self.attention, width),
            "attention_norm": Sub(self.norm, width),
        }
        if self.cross is not None:
            params |= {"cross": Sub(self.cross, width), "cross_norm": Sub(self.norm, width)}
        params |= {"ffn": Sub(self.ffn, width), "ffn_norm": Sub(self.norm, width)}
        return params | {"dropout": Dropout(self.dropout)} if self.dropout else params

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor | None, step: Step) -> tuple[Tensor, None]:
        if d is not None:
            x = x + d
        x = self._joined(p, p.attention_norm, x, p.attention(x, step))
        if self.cross is not None:
            x = self._joined(p, p.cross_norm, x, p.cross(x, step))
        return self._joined(p, p.ffn_norm, x, p.ffn(x)), None

    def _joined(self, p: LayerHandle, norm: LayerHandle, x: Tensor, y: Tensor) -> Tensor:
        x = x if self.residual_scale == 1 else x * self.residual_scale
        return add_norm(norm, x, p.dropout(y) if self.dropout else y)[1]
