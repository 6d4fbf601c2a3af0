"""The KV cache as states of a Core AI function: arrays that the runtime keeps, and that a call reads and writes in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeformer.exporters.coreai.package import c
from edgeformer.exporters.coreai.values import END, CoreTensor, Part, cut, ints, reshaped, vector
from edgeformer.spec import Model, layers

MAIN, ENCODE, DECODE = "main", "encode", "decode"
"""The functions of an asset: of a decoder or encoder, and of an encoder–decoder model."""
PUBLIC = {"k": "keyCache", "v": "valueCache"}


@dataclass(frozen=True)
class State:
    """One state: `[layers, 1, heads, capacity, dim]`, which holds the tensor `name` of the layers at `paths`."""

    public: str
    name: str
    heads: int
    dim: int
    paths: tuple[str, ...]

    def shape(self, capacity: int) -> tuple[int, ...]:
        """The shape of its array."""
        return len(self.paths), 1, self.heads, capacity, self.dim


def states(spec: Model) -> list[State]:
    """A decoder's states, `keyCache` and `valueCache` first: layers whose tensors have the same name and size share one."""
    grouped: dict[tuple[str, int, int], list[str]] = {}
    for path, layer, _ in layers(spec):
        for name, (heads, dim) in layer.cache().items():
            grouped.setdefault((name, heads, dim), []).append(path)
    made, seen = [], dict.fromkeys((name for name, *_ in grouped), 0)
    for (name, heads, dim), paths in grouped.items():
        public = PUBLIC.get(name, f"{name}Cache") + (str(seen[name]) if seen[name] else "")
        seen[name] += 1
        made.append(State(public, name, heads, dim, tuple(paths)))
    order = list(seen)
    return sorted(made, key=lambda s: order.index(s.name))


def read_names(spec: Model) -> dict[tuple[str, str], tuple[str, int, int]]:
    """(layer path, tensor) -> name, heads, dim of what cross-attention reads, which `encode` returns."""
    paths = [(path, layer.once()) for path, layer, _ in layers(spec) if layer.once()]
    return {
        (path, name): (f"encoder_{'key' if name == 'k' else 'value'}_{number}", *size)
        for number, (path, sizes) in enumerate(paths)
        for name, size in sizes.items()
    }


class StateStore:
    """A store that writes each layer's new keys and values behind the past ones, and reads both.

    Args:
        held: the states, and the function's argument for each.
        past: number of tokens before this call.
        end: past and new tokens.
        read: cross-attention's keys and values by (layer path, tensor).
    """

    def __init__(
        self,
        held: list[tuple[State, Any]],
        past: CoreTensor,
        end: CoreTensor,
        read: dict[Any, CoreTensor] | None = None,
    ):
        self.past, self.end, self.read = past, end, read or {}
        self.handles = {state.public: handle for state, handle in held}
        self.tokens = {state.public: c().create_token() for state, _ in held}
        self._places = {
            (path, state.name): (state.public, number) for state, _ in held for number, path in enumerate(state.paths)
        }

    def append(self, path: str, tensors: dict[str, CoreTensor]) -> tuple[CoreTensor, ...]:
        """Write the new tokens' tensors `[1, heads, T, dim]`; return those of all tokens `[1, heads, S, dim]`."""
        made = []
        for name, new in tensors.items():
            public, number = self._places[path, name]
            array, token = c().read_handle(self.handles[public], self.tokens[public])
            end: list[Part] = [number + 1, END, END, self.end, END]
            place = vector([number, 0, 0, self.past, 0]), vector(end), ints(1, 1, 1, 1, 1)
            array = c().slice_update(array, *place, c().expand_dims(new.value, ints(0)))
            self.tokens[public] = c().write_handle(self.handles[public], array, token)
            seen = cut(array, [number, 0, 0, 0, 0], end)
            heads, dim = new.dims[1], new.dims[3]
            assert heads is not None and dim is not None
            made.append(reshaped(seen, [1, heads, self.end, dim]))
        return tuple(made)

    def once(self, path: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Cross-attention's keys and values, which the function `encode` has computed."""
        return {name: x for (place, name), x in self.read.items() if place == path}
