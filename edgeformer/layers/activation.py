"""Which activations there are: those that the op vocabulary has as `act_<name>`. Not a kind of its own."""

from __future__ import annotations

from edgeformer.ops import Ops
from edgeformer.spec import Node


def activations() -> list[str]:
    """All names."""
    return sorted(name.removeprefix("act_") for name in dir(Ops) if name.startswith("act_"))


def require_activation(node: Node, name: str) -> None:
    """Raise `SpecError` unless the vocabulary has this activation."""
    node.require(name in activations(), f"act {name!r} is not known; known are {', '.join(activations())}")
