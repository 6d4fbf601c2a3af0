"""Mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.activation import require_activation
from edgeformer.spec import Declaration, Layer, Linear, Stacked


@dataclass(frozen=True, kw_only=True)
class MoE(Layer):
    """Each token goes to its `chosen` best of `experts` gated FFNs (Shazeer et al. 2017; Jiang et al. 2024, Mixtral).

    weights = softmax over all experts' router scores, top `chosen`, renormalised to sum 1 when `renormalize`.
    """

    kind: ClassVar[str] = "moe"
    experts: int
    chosen: int
    hidden: int
    act: str = "silu"
    renormalize: bool = True

    def __post_init__(self) -> None:
        self.require_positive("hidden")
        require_activation(self, self.act)
        self.require(0 < self.chosen <= self.experts, f"can't choose {self.chosen} of {self.experts} experts")

    def params(self, width: int) -> dict[str, Declaration]:
        return {
            "router": Linear(width, self.experts),
            "gate": Stacked(self.experts, width, self.hidden),
            "up": Stacked(self.experts, width, self.hidden),
            "down": Stacked(self.experts, self.hidden, width, residual=True),
        }

    def apply(self, ops: Any, p: Any, x: Any) -> Any:
        weights, chosen = ops.topk(ops.softmax(ops.f32(p.router(x))), self.chosen)
        if self.renormalize:
            weights = weights / ops.sum(weights, -1, keep=True)
        return ops.moe(x, ops.cast(weights, x), chosen, p.gate, p.up, p.down, act=self.act, count=self.experts)
