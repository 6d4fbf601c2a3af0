"""Post-norm transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.stack import add_norm
from edgeformer.spec import Declaration, Dropout, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class PostNormBlock(Layer):
    """x = norm(x + attention(x)); x = norm(x + ffn(x)) (Vaswani et al. 2017; BERT)."""

    kind: ClassVar[str] = "post_norm_block"
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

    def apply(self, ops: Any, p: Any, x: Any, d: Any, step: Any) -> tuple[Any, Any]:
        if d is not None:
            x = x + d
        y = p.attention(x, step)
        _, x = add_norm(p.attention_norm, x, p.dropout(y) if self.dropout else y)
        y = p.ffn(x)
        _, x = add_norm(p.ffn_norm, x, p.dropout(y) if self.dropout else y)
        return x, None
