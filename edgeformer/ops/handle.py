"""A layer together with its parameters: the `p` in `apply(ops, p, ...)`, with the same methods on every back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeformer.ops.tensor import T


class LayerHandle:
    """Base class of a back end's layer handles, with the entry points of layers.

    Attributes with the names of the layer's declarations hold what the back end made of them. Layers call each other only
    through these methods, so that a missing one fails on all back ends alike; add new entry points here.
    """

    layer: Any
    """The `Layer`; which entry points it has depends on its kind."""
    ops: Any
    """The back end's own `Ops`; not declared as `Ops`, since a subclass couldn't narrow it."""
    path: str
    """The layer's path in the tree, e.g. `layers.0.attention`; empty for the root."""

    def hold(self, width: int, make: Callable[[Any, str], Any]) -> None:
        """Set an attribute for each of the layer's declarations: what `make(declaration, path)` returns, or a list of these."""
        for name, declared in self.layer.params(width).items():
            path = f"{self.path}.{name}" if self.path else name
            several = isinstance(declared, tuple)
            setattr(
                self,
                name,
                [make(d, f"{path}.{i}") for i, d in enumerate(declared)] if several else make(declared, path),
            )

    def __call__(self, *inputs: object) -> Any:
        """`Layer.apply`."""
        return self.ops.enter(self, self.layer.apply, *inputs)

    def add(self, x: T, d: T) -> tuple[T, T]:
        """`Norm.add`."""
        return self.ops.enter(self, self.layer.add, x, d)

    def remember(self, memory: T) -> dict[str, T]:
        """`CrossAttention.remember`."""
        return self.ops.enter(self, self.layer.remember, memory)

    if TYPE_CHECKING:  # the back end's objects for the declarations

        def __getattr__(self, name: str) -> Any: ...
