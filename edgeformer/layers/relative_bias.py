"""T5's relative position bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from edgeformer.ops import Bias, Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.spec import Const, Declaration, Node, Position, Table


@dataclass(frozen=True, kw_only=True)
class RelativeBias(Position):
    """A learned bias per head and distance bucket (Raffel et al. 2019, arXiv 1910.10683, section 2.1).

    Half of the `buckets` (per direction, if `bidirectional`) hold one distance each, the others grow logarithmically up to
    `furthest`; larger distances share the last. The map from distances to buckets is a table made at build time, so that no
    runtime computes a logarithm.
    """

    kind: ClassVar[str] = "relative_bias"
    heads: int
    buckets: int = 32
    furthest: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        self.require_positive(heads=self.heads, buckets=self.buckets, furthest=self.furthest)
        self.require(
            self.buckets % 2 == 0 or not self.bidirectional,
            f"buckets must be even if bidirectional, got {self.buckets}",
        )
        self.require(self.furthest <= 2**20, f"furthest must be at most {2**20:,}, got {self.furthest:,}")
        least = 4 if self.bidirectional else 2
        self.require(self.buckets >= least, f"buckets must be at least {least}, got {self.buckets}")
        self.require(
            self.furthest > self.buckets // (4 if self.bidirectional else 2),
            f"furthest must exceed the number of single-distance buckets, got {self.furthest}",
        )

    def lookup(self) -> np.ndarray:
        """Bucket of key − query = −furthest .. furthest, int64 [2 · furthest + 1]."""
        distance = np.arange(-self.furthest, self.furthest + 1)
        count, offset = self.buckets, 0
        if self.bidirectional:
            count //= 2
            offset, away = np.where(distance > 0, count, 0), np.abs(distance)
        else:
            away = np.maximum(-distance, 0)
        exact = count // 2
        # same rounding as the published code: float32 logarithms, truncated towards zero
        far = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            np.log(self.furthest / exact)
        )
        grown = np.minimum(exact + (far.astype(np.float32) * np.float32(count - exact)).astype(np.int64), count - 1)
        return (offset + np.where(away < exact, away, grown)).astype(np.int64)

    def require_heads(self, owner: Node, heads: int, head_dim: int) -> None:
        owner.require(self.heads == heads, f"position has {self.heads} heads, but the attention has {heads}")

    def for_heads(self, heads: int, head_dim: int, old_head_dim: int) -> Self:
        return replace(self, heads=heads)

    def params(self, width: int) -> dict[str, Declaration]:
        return {"bucket": Const(self.lookup), "table": Table(self.buckets, self.heads)}

    def apply(self, ops: Ops, p: LayerHandle, step: Step) -> Bias:
        distance = ops.expand_dims(step.keys, 1) - ops.expand_dims(step.queries, 2)
        bucket = ops.take(p.bucket, ops.clip(distance, -self.furthest, self.furthest) + self.furthest)
        return Bias(ops.permute(ops.f32(p.table(bucket)), (0, 3, 1, 2)))
