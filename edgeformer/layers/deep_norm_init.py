"""DeepNorm's initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.spec import Init, Leaf, Linear, Stacked

_SCALED = ("v", "o", "gate", "up", "down", "v_up")


@dataclass(frozen=True, kw_only=True)
class DeepNormInit(Init):
    """Xavier normal with gain `beta` for value, output and feed-forward weights, 1 for queries and keys; `std` for embeddings.

    Wang et al. 2022, arXiv 2203.00555, figure 2: for an encoder or a decoder of N layers, alpha = (2N) ** ¼, which is the blocks'
    `residual_scale`, and beta = (8N) ** −¼.
    """

    kind: ClassVar[str] = "deep_norm_init"
    beta: float

    @staticmethod
    def alpha(depth: int) -> float:
        """The residual scale for `depth` layers."""
        return (2 * depth) ** 0.25

    @classmethod
    def of(cls, depth: int) -> DeepNormInit:
        """The initialisation of an encoder-only or decoder-only model of `depth` layers."""
        return cls(beta=(8 * depth) ** -0.25)

    def deviation(self, path: str, leaf: Leaf, depth: int) -> float:
        if not isinstance(leaf, (Linear, Stacked)):
            return self.std
        gain = self.beta if path.rsplit(".", 1)[-1] in _SCALED else 1.0
        return gain * (2 / (leaf.inputs + leaf.outputs)) ** 0.5
