"""A layer with its parameters, as the maths of layers see it: `p` in `apply(ops, p, ...)`, with the same methods on every
back end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeformer.ops.tensor import T


class LayerHandle:
    """The entry points of a layer, for a back end's own class to inherit.

    Attributes named as the layer's declarations hold what these became. A layer enters another one through the handle's methods
    and through nothing else, so that a name that isn't here fails on all back ends alike; a new entry point is a method here.
    """

    layer: Any
    """The `Layer`, of whatever kind: which entry points it has is known when one is entered."""
    ops: Any
    """The back end's own `Ops`."""
    path: str
    """Where the layer is in the tree: `layers.0.attention`; empty for the root."""

    def __call__(self, *inputs: Any) -> Any:
        """`Layer.apply`."""
        return self.ops.enter(self, self.layer.apply, *inputs)

    def add(self, x: T, d: T) -> tuple[T, T]:
        """`Norm.add`."""
        return self.ops.enter(self, self.layer.add, x, d)

    def remember(self, memory: T) -> dict[str, T]:
        """`CrossAttention.remember`."""
        return self.ops.enter(self, self.layer.remember, memory)

    if TYPE_CHECKING:  # what the declarations became

        def __getattr__(self, name: str) -> Any: ...
