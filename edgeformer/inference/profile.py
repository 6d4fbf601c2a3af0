"""Where the time of a forward pass goes: operations, each in a block (attention, ffn, norm, head, other).

Our own back ends all call `layer.apply(ops, handle, ...)` and methods of `ops`, so one clock around those profiles every one
of them: `layer_clock`. It waits for every result, so a back end that is lazy or works ahead runs less well under it.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeformer.ops import Ops
from edgeformer.spec import Model, layers

BLOCKS = ("attention", "ffn", "norm", "head", "other")
_ENTRIES = ("apply", "add", "remember", "logits")
"""Methods of layers that back ends call with the handle as an argument."""


@dataclass
class Operation:
    """Nanoseconds of an operation in a block, and how often it ran."""

    block: str
    name: str
    ns: int = 0
    count: int = 0


def block_of(path: str) -> str:
    """The block of a layer's path or a node's name: `layers.0.attention.q`, `decoder/layers.0/ffn/gate/MatMul`."""
    parts = re.split(r"[./]", path)
    for part in reversed(parts):
        if part.endswith("norm"):
            return "attention" if "attention" in parts[: parts.index(part)] else "norm"  # of queries and keys
        if part in ("attention", "cross"):
            return "attention"
        if part in ("ffn", "moe"):
            return "ffn"
        if part == "head":
            return "head"
    return "other"


class _Clock:
    """Charges every span of time to the innermost thing that is running."""

    def __init__(self, wait: Callable[[Any], None]):
        self.wait, self.found, self.stack = wait, {}, []

    def charge(self) -> None:
        now = time.perf_counter_ns()
        if self.stack:
            self.stack[-1].ns += now - self.since
        self.since = now

    def run(self, block: str, name: str, call: Callable[[], Any], inputs: Any) -> Any:
        self.wait(inputs)
        self.charge()
        operation = self.found.setdefault((block, name), Operation(block, name))
        operation.count += 1
        self.stack.append(operation)
        try:
            result = call()
            self.wait(result)
            return result
        finally:
            self.charge()
            self.stack.pop()


@contextlib.contextmanager
def layer_clock(spec: Model, ops: type[Ops], wait: Callable[[Any], None]) -> Iterator[dict[Any, Operation]]:
    """Clock every layer and op of a spec while the block runs; the operations are those seen so far.

    wait: makes sure that a value (arrays, or tuples, lists and dicts of them) is computed.
    """
    clock = _Clock(wait)
    kinds = {type(layer) for _, layer, _ in layers(spec)}
    replaced = [
        (kind, name, _clocked_layer(clock, original, name))
        for kind in kinds
        for name in _ENTRIES
        if callable(original := inspect.getattr_static(kind, name, None))
    ]
    vocabulary = [name for name in dir(Ops) if not name.startswith("_") and callable(getattr(ops, name))]
    replaced += [(ops, name, _clocked_op(clock, getattr(ops, name), name)) for name in vocabulary]
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in replaced]
    try:
        for owner, name, clocked in replaced:
            setattr(owner, name, clocked)
        yield clock.found
    finally:
        for owner, name, own in before:
            if own is None:  # it was inherited
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _clocked_layer(clock: _Clock, original: Any, entry: str) -> Any:
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        handle = next((a for a in arguments if hasattr(a, "layer") and hasattr(a, "path")), None)
        block = "head" if entry == "logits" else block_of(getattr(handle, "path", ""))
        return clock.run(block, "linear maps and glue", lambda: original(self, *arguments, **options), arguments)

    return call


def _clocked_op(clock: _Clock, original: Any, name: str) -> Any:
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        top = clock.stack[-1] if clock.stack else None
        if top is None or top.name != "linear maps and glue":  # an op in an op is part of it
            return original(self, *arguments, **options)
        return clock.run(top.block, name, lambda: original(self, *arguments, **options), arguments)

    return call
