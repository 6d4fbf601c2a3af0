"""Derives a resized spec from an existing one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

from edgeformer.errors import InputError
from edgeformer.spec import Model, Node, Sizes, layers

_WHOLE_MODEL = frozenset(("layers", "vocab", "context", "tied"))


def derive(spec: Model, sizes: Sizes) -> Model:
    """Return the spec with other sizes, by calling `Node.resized` on every node.

    A new width keeps head_dim and scales the FFN, and also the number of heads (and of key heads) if heads · head_dim equalled
    the width. Additional layers continue the existing pattern (windows, dense and sparse layers).

    Raises:
        InputError: a size that this architecture doesn't have, or that isn't divisible.
        SpecError: sizes that contradict each other.
    """
    if not spec.resizes:
        raise InputError(f"a model of kind {spec.kind!r} can't be resized; derive a spec from a decoder or an encoder")
    given = {name for name, value in dataclasses.asdict(sizes).items() if value is not None}
    nodes = [layer for _, layer, _ in layers(spec)]
    inner = [layer for layer in nodes if layer is not spec]
    if fixed := sorted((given & _WHOLE_MODEL) - spec.resizes):
        raise InputError(f"--{fixed[0]} can't be given: a model of kind {spec.kind!r} has no such size")
    for name in sorted(given - _WHOLE_MODEL):
        if not any(name in layer.resizes for layer in inner):
            attention = sorted({layer.kind for layer in inner if layer.flops_per_key()})
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(sizes, name)}: no layer of this spec can change it"
                f" (its attention is {', '.join(attention)})"
            )
    made = rebuilt(spec, lambda node: node.resized(sizes, spec.width))
    assert isinstance(made, Model)
    return made


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """Return the tree with `change` applied to every node, children first."""
    fields = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            fields[field.name] = rebuilt(value, change)
        elif isinstance(value, tuple) and any(isinstance(v, Node) for v in value):
            fields[field.name] = tuple(rebuilt(v, change) if isinstance(v, Node) else v for v in value)
    return change(replace(node, **{k: v for k, v in fields.items() if v != getattr(node, k)}) if fields else node)
