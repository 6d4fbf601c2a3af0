"""A class for each token."""

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
class TokenClassifier(Head):
    """out(transform(x)): logits of each token's labels (Devlin et al. 2019, section 5.3). `transform` may be absent."""

    kind: ClassVar[str] = "token_classifier"
    labels: int
    transform: HeadTransform | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.require_positive(labels=self.labels)

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {}
        if self.transform is not None:
            params |= {"transform": Sub(self.transform, width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        return params | {"token_out": Linear(width, self.labels, bias=True)}

    def outputs(self) -> Shapes:
        return {"logits": (*TOKENS, self.labels)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = x if self.transform is None else p.transform(x)
        return {"logits": p.token_out(p.dropout(y) if self.dropout else y)}
