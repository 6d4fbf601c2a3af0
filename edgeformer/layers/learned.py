"""Learned absolute positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Sizes, Table


@dataclass(frozen=True, kw_only=True)
class Learned(Layer):
    """One learned vector per position, added to the embedding (Gehring et al. 2017; BERT, GPT-2).

    `offset` rows precede that of position 0: OPT and RoBERTa have two.
    """

    kind: ClassVar[str] = "learned"
    resizes: ClassVar[frozenset[str]] = frozenset(("context",))
    count: int
    offset: int = 0

    def __post_init__(self) -> None:
        self.require_positive(count=self.count)
        self.require(self.offset >= 0, f"offset can't be negative, got {self.offset}")

    def resized(self, sizes: Sizes, width: int) -> Self:
        return self if sizes.context is None else replace(self, count=sizes.context)

    def params(self, width: int) -> dict[str, Declaration]:
        return {"table": Table(self.count + self.offset, width)}

    def apply(self, ops: Ops, p: LayerHandle, step: Step) -> Tensor:
        return p.table(step.positions + self.offset if self.offset else step.positions)
