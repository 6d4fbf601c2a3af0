"""Where an answer begins and ends in a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.head import TOKENS, Head, Shapes
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Linear, Sub


@dataclass(frozen=True, kw_only=True)
class SpanHead(Head):
    """Two logits per token, of the answer's start and of its end (Devlin et al. 2019, section 4.2). `transform` may be absent."""

    kind: ClassVar[str] = "span_head"
    transform: HeadTransform | None = None
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {}
        if self.transform is not None:
            params |= {"transform": Sub(self.transform, width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        return params | {"span_out": Linear(width, 2, bias=True)}

    def outputs(self) -> Shapes:
        return {"start_logits": TOKENS, "end_logits": TOKENS}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = x if self.transform is None else p.transform(x)
        start, end = ops.split(p.span_out(p.dropout(y) if self.dropout else y), [1, 1], -1)
        return {"start_logits": ops.sum(start, -1), "end_logits": ops.sum(end, -1)}
