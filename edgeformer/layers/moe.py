"""Mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from edgeformer.layers.activation import require_activation
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear, Sizes, Stacked, Sub, resized_ffn


@dataclass(frozen=True, kw_only=True)
class MoE(Layer):
    """Route each token to its top `chosen` of `experts` gated FFNs (Shazeer et al. 2017; Jiang et al. 2024, Mixtral).

    weights = softmax over all experts' router scores, top `chosen`; if `renormalize`, divided by their sum, which equals a
    softmax over the chosen scores alone; then multiplied by `scale`. `shared` is a network applied to every token in addition
    (DeepSeek-AI 2024, section 2.2). With `groups`, experts are chosen only from the `chosen_groups` groups with the best
    single expert.
    """

    kind: ClassVar[str] = "moe"
    resizes: ClassVar[frozenset[str]] = frozenset(("ffn",))
    same_input: ClassVar[tuple[tuple[str, ...], ...]] = (("gate", "up"),)
    experts: int
    chosen: int
    hidden: int
    act: str = "silu"
    renormalize: bool = True
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    shared: Layer | None = None

    def __post_init__(self) -> None:
        self.require_positive(hidden=self.hidden)
        require_activation(self, self.act)
        self.require(
            0 < self.chosen <= self.experts, f"chosen must be between 1 and experts ({self.experts}), got {self.chosen}"
        )
        self.require(
            0 < self.chosen_groups <= self.groups and self.experts % self.groups == 0,
            f"can't choose {self.chosen_groups} of {self.groups} equal groups of {self.experts} experts: chosen_groups must be"
            " between 1 and groups, and groups must divide experts",
        )
        reach = self.experts // self.groups * self.chosen_groups
        self.require(
            self.chosen <= reach,
            f"{self.chosen_groups} groups have only {reach} experts, fewer than the {self.chosen} to choose",
        )

    def resized(self, sizes: Sizes, width: int) -> Self:
        return replace(self, hidden=resized_ffn(self.hidden, sizes, width))

    def ffn_width(self) -> int:
        return self.hidden

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "router": Linear(width, self.experts, routes=True),
            "gate": Stacked(self.experts, width, self.hidden, active=self.chosen),
            "up": Stacked(self.experts, width, self.hidden, active=self.chosen),
            "down": Stacked(self.experts, self.hidden, width, residual=True, active=self.chosen),
        }
        return params if self.shared is None else params | {"shared": Sub(self.shared, width)}

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        scores = ops.softmax(ops.f32(p.router(x)))
        allowed = scores
        if self.chosen_groups < self.groups:
            allowed = ops.within_groups(scores, self.groups, self.experts // self.groups, self.chosen_groups)
        weights, chosen = ops.topk(allowed, self.chosen)
        ops.routed(scores, chosen)
        if self.renormalize:
            weights = weights / ops.sum(weights, -1, keep=True)
        if self.scale != 1:
            weights = weights * self.scale
        y = ops.moe(x, ops.cast(weights, x), chosen, p.gate, p.up, p.down, act=self.act, count=self.experts)
        return y if self.shared is None else y + p.shared(x)
