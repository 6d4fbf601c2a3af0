"""What a config can't say of a spec, and transformers' names of activations."""

from __future__ import annotations

from edgeformer.models._config import HF_ACTIVATIONS
from edgeformer.spec import Node


class Unmapped(Exception):
    """The spec has a property that a config of this type can't express."""


class OtherKind(Unmapped):
    """The spec is of another kind of model."""


def need(rule: bool, reason: str) -> None:
    """Raise `Unmapped` with the reason unless the rule holds."""
    if not rule:
        raise Unmapped(reason)


def hf_activation(act: str | Node) -> str:
    """transformers' name of an activation.

    Raises:
        Unmapped: it is a layer with parameters of its own.
    """
    if not isinstance(act, str):
        raise Unmapped(f"transformers has no name for the activation {act.kind}")
    return HF_ACTIVATIONS.get(act, act)
