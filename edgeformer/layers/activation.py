"""Activations of feed-forward networks: those that the vocabulary has as `act_<name>`, or a layer such as `swish`. Not a kind."""

from __future__ import annotations

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Node, Sub

Activation = str | Layer


def activations() -> list[str]:
    """The names that the vocabulary has."""
    return sorted(name.removeprefix("act_") for name in dir(Ops) if name.startswith("act_"))


def require_activation(node: Node, act: Activation) -> None:
    """Raise `SpecError` unless the vocabulary has this activation, or it is a layer."""
    known = ", ".join(activations())
    node.require(isinstance(act, Layer) or act in activations(), f"act {act!r} is not known; known are {known}")


def activation_params(act: Activation, width: int) -> dict[str, Declaration]:
    """What a network declares for its activation: nothing for a name."""
    return {"act": Sub(act, width)} if isinstance(act, Layer) else {}


def activate(ops: Ops, p: LayerHandle, act: Activation, x: Tensor) -> Tensor:
    """The activation of `x`; `p` is the network's handle."""
    return p.act(x) if isinstance(act, Layer) else ops.activate(act, x)
