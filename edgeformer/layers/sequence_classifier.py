"""A class, several, or a score for a whole text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.head import Head, Shapes
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.pooling import Pooling
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Linear, Sub


@dataclass(frozen=True, kw_only=True)
class SequenceClassifier(Head):
    """out(transform(pool(x))): one logit per label, or a score with a single one (Devlin et al. 2019, section 4.1).

    `pool` is not normalised; `transform` may be absent; `bias` is the output map's. `input_dropout` applies to the pooled
    vector, `dropout` before the output map.
    """

    kind: ClassVar[str] = "sequence_classifier"
    labels: int
    pool: Pooling = Pooling(mode="cls", normalize=False)
    transform: HeadTransform | None = None
    bias: bool = True
    input_dropout: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.require_positive(labels=self.labels)
        self.require(
            isinstance(self.pool.mode, str) and not self.pool.normalize,
            "pool must have one mode, and must not normalise",
        )

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {"pool": Sub(self.pool, width)}
        if self.input_dropout:
            params |= {"input_dropout": Dropout(self.input_dropout)}
        if self.transform is not None:
            params |= {"transform": Sub(self.transform, width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        return params | {"out": Linear(width, self.labels, self.bias)}

    def outputs(self) -> Shapes:
        return {"logits": ("batch_size", self.labels)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = p.pool(x, mask)
        if self.input_dropout:
            y = p.input_dropout(y)
        if self.transform is not None:
            y = p.transform(y)
        return {"logits": p.out(p.dropout(y) if self.dropout else y)}
