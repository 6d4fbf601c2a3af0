"""Sinusoidal absolute positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from edgeformer.files.limits import MAX_CONSTANT
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Const, Declaration, Layer, Sizes


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Layer):
    """sin and cos of position / 10000 ** (2i / width), added to the embedding (Vaswani et al. 2017, section 3.5).

    `interleaved`: sin and cos alternate, as in the paper; otherwise all sines, then all cosines (Marian).
    `count` is the number of positions.
    """

    kind: ClassVar[str] = "sinusoidal"
    resizes: ClassVar[frozenset[str]] = frozenset(("context",))
    count: int
    interleaved: bool = True

    def __post_init__(self) -> None:
        self.require_positive(count=self.count)

    def resized(self, sizes: Sizes, width: int) -> Self:
        return self if sizes.context is None else replace(self, count=sizes.context)

    def table(self, width: int) -> np.ndarray:
        """The position table, float32 [count, width]."""
        self.require(width % 2 == 0, f"width must be even, got {width}")
        self.require(
            self.count * width <= MAX_CONSTANT, f"a position table of {self.count:,} × {width:,} values is too large"
        )
        angles = np.arange(self.count)[:, None] / 10_000 ** (2 * np.arange(width // 2) / width)
        pair = np.stack([np.sin(angles), np.cos(angles)], -1 if self.interleaved else 1)
        return pair.reshape(self.count, width).astype(np.float32)

    def params(self, width: int) -> dict[str, Declaration]:
        return {"rows": Const(lambda: self.table(width))}

    def apply(self, ops: Ops, p: LayerHandle, step: Step) -> Tensor:
        return ops.take(p.rows, step.positions)
