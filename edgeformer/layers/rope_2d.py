"""Rotary position embedding in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.rope import Rope
from edgeformer.ops import Ops, Rotary
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step


@dataclass(frozen=True, kw_only=True)
class Rope2D(Rope):
    """2D RoPE: one position within the prefix, one after it (Du et al. 2022, arXiv 2103.10360, section 2.3).

    For a prefix of n tokens, the first position runs 0 .. n − 1 and then stays at n − 1; the second is 0 in the prefix and runs
    1, 2, .. after it. The first half of the `dim/2` pairs rotates by the first position, the second half by the second, both
    with the frequencies of `dim/2` channels. Pairs are (i, i + dim/2); ChatGLM-6B stores the pairs of each half adjacently, a
    permutation of the same rows.
    """

    kind: ClassVar[str] = "rope_2d"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.dim % 4 == 0, f"dim must be a multiple of 4, got {self.dim}")
        self.require(self.scaling is None, "scaling is not supported")

    def frequencies(self) -> Any:
        return Rope(dim=self.dim // 2, theta=self.theta).frequencies()

    def table(self, length: int) -> None:
        return None  # angles depend on the prefix

    def apply(self, ops: Ops, p: LayerHandle, step: Step) -> Rotary:
        after = ops.clip(step.positions - (ops.expand_dims(step.prefix, 1) - 1), 0, 1 << 30)
        counts = (step.positions - after, after)
        parts = [ops.expand_dims(ops.cast(count, p.frequencies), 2) * p.frequencies for count in counts]
        angles = ops.expand_dims(ops.concat(parts, -1), 1)
        return Rotary(ops.cos(angles), ops.sin(angles), self)
