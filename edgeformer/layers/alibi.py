"""ALiBi: attention with linear biases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from edgeformer.ops import Bias, Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.spec import Const, Declaration, Node, Position


@dataclass(frozen=True, kw_only=True)
class Alibi(Position):
    """score −= slope · (query − key), a slope per head (Press et al. 2021, arXiv 2108.12409).

    For a power of two heads the slopes are 2 ** (−max_bias · h / heads), h = 1 .. heads; otherwise those of the next lower power
    of two, then every second one of twice as many (the authors' code; BLOOM and MPT do the same).
    """

    kind: ClassVar[str] = "alibi"
    heads: int
    max_bias: float = 8.0

    def __post_init__(self) -> None:
        self.require_positive(heads=self.heads, max_bias=self.max_bias)
        self.require(self.heads <= 2**16, f"heads must be at most {2**16:,}, got {self.heads:,}")

    def slopes(self) -> np.ndarray:
        """Slopes, float32 [heads]."""

        def of(count: int) -> list[float]:
            return [2 ** (-self.max_bias * (h + 1) / count) for h in range(count)]

        power = 1 << (self.heads.bit_length() - 1)
        return np.array((of(power) + of(2 * power)[0::2])[: self.heads], np.float32)

    def require_heads(self, owner: Node, heads: int, head_dim: int) -> None:
        owner.require(self.heads == heads, f"position has {self.heads} heads, but the attention has {heads}")

    def for_heads(self, heads: int, head_dim: int, old_head_dim: int) -> Self:
        return replace(self, heads=heads)

    def params(self, width: int) -> dict[str, Declaration]:
        return {"slopes": Const(lambda: self.slopes().reshape(1, self.heads, 1, 1))}

    def apply(self, ops: Ops, p: LayerHandle, step: Step) -> Bias:
        queries, keys = ops.expand_dims(step.queries, 2), ops.expand_dims(step.keys, 1)
        return Bias(ops.expand_dims(ops.cast(keys - queries, p.slopes), 1) * p.slopes)
