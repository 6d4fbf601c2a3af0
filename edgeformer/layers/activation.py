"""Activations of feed-forward networks: an op `act_<name>` of the vocabulary, or a layer such as `swish`. Not a kind."""

from __future__ import annotations

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Node, Sub

Activation = str | Layer


def activations() -> list[str]:
    """Names of the vocabulary's activations."""
    return sorted(name.removeprefix("act_") for name in dir(Ops) if name.startswith("act_"))


def require_activation(node: Node, act: Activation) -> None:
    """Raise `SpecError` unless `act` is a layer or one of the vocabulary's activations."""
    known = ", ".join(activations())
    node.require(
        isinstance(act, Layer) or act in activations(), f"act {act!r} is not known; known activations: {known}"
    )


def activation_params(act: Activation, width: int) -> dict[str, Declaration]:
    """The declarations of a network's activation; empty if it is a name."""
    return {"act": Sub(act, width)} if isinstance(act, Layer) else {}


def activate(ops: Ops, p: LayerHandle, act: Activation, x: Tensor) -> Tensor:
    """Apply the activation to `x`; `p` is the network's handle."""
    return p.act(x) if isinstance(act, Layer) else ops.activate(act, x)
