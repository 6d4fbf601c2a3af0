"""Traversal of spec trees, and canonical tensor names."""

from __future__ import annotations

from collections.abc import Iterator

from edgeformer.errors import SpecError
from edgeformer.spec.declarations import Declaration, Leaf, Linear, Stacked, Sub, Table, Vector
from edgeformer.spec.nodes import Layer

# names that torch and MLX modules already use
RESERVED = frozenset(
    ("add", "apply", "buffers", "children", "eval", "forward", "items", "keys", "layer", "ops", "parameters", "path")
    + ("pop", "remember", "state", "train", "update", "values", "width")
)


def children(name: str, declaration: Declaration) -> Iterator[tuple[str, Sub]]:
    """Yield the `(name, Sub)` pairs of one parameter; those of a tuple are named `name.0`, `name.1`, ..."""
    if isinstance(declaration, Sub):
        yield name, declaration
    elif isinstance(declaration, tuple):
        yield from ((f"{name}.{i}", sub) for i, sub in enumerate(declaration))


def layers(layer: Layer, width: int = 0, path: str = "") -> Iterator[tuple[str, Layer, int]]:
    """Yield every `(path, layer, width)` of the tree, parents first."""
    yield path, layer, width
    for name, declaration in layer.params(width).items():
        for child, sub in children(name, declaration):
            yield from layers(sub.layer, sub.width, f"{path}.{child}" if path else child)


def passes(layer: Layer, width: int = 0, times: int = 1) -> Iterator[tuple[Layer, int, int]]:
    """Yield every `(layer, width, times)` of the tree, parents first; `times`: how often one forward pass runs the layer."""
    yield layer, width, times
    for name, declaration in layer.params(width).items():
        for child, sub in children(name, declaration):
            yield from passes(sub.layer, sub.width, times * layer.passes(child))


def leaves(layer: Layer, width: int = 0) -> Iterator[tuple[str, Leaf]]:
    """Yield every `(path, declaration)` that owns tensors."""
    for path, node, node_width in layers(layer, width):
        for name, declaration in node.params(node_width).items():
            if isinstance(declaration, (Linear, Stacked, Vector, Table)):
                yield (f"{path}.{name}" if path else name), declaration


def tensor_name(path: str, suffix: str) -> str:
    """The canonical name of a leaf's tensor: `layers.0.attention.q` + `weight`; a Vector has no suffix."""
    return f"{path}.{suffix}" if suffix else path


def tensors(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Map canonical tensor names to shapes, for the whole tree."""
    return {
        tensor_name(path, suffix): shape for path, leaf in leaves(layer) for suffix, shape in leaf.tensors().items()
    }


def check(model: Layer) -> None:
    """Check that every parameter name can be an attribute of a module.

    Raises:
        SpecError: a parameter's name is reserved, private or no identifier.
    """
    for path, layer, width in layers(model):
        for name in layer.params(width):
            if not name.isidentifier() or name.startswith("_") or name in RESERVED:
                raise SpecError(
                    f"{layer.kind} at {path or 'the root'}: parameter name {name!r} is reserved, private or no identifier"
                )
