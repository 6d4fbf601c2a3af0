"""Profiles of a forward pass: time per operation, each in a block (attention, ffn, norm, head, other).

edgeformer's own back ends all enter layers through `ops.enter` and compute through methods of `ops`, so one clock around those
profiles all of them: `layer_clock`. It waits for every result, so a lazy or asynchronous back end runs slower under it.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle

R = TypeVar("R")

BLOCKS = ("attention", "ffn", "norm", "head", "other")
GLUE = "linear maps and glue"
"""The operation name for a layer's work outside the vocabulary's ops."""
VOCABULARY = tuple(
    n for n, f in inspect.getmembers(Ops, inspect.isfunction) if n[0] != "_" and n not in ("enter", "part")
)
"""Names of the ops that are timed."""


@dataclass
class Operation:
    """Total nanoseconds of an operation in a block, and its number of calls."""

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
    """Charges elapsed time to the innermost running operation."""

    def __init__(self, wait: Callable[[object], None]):
        self.wait, self.found, self.stack = wait, {}, []

    def charge(self) -> None:
        now = time.perf_counter_ns()
        if self.stack:
            self.stack[-1].ns += now - self.since
        self.since = now

    def run(self, block: str, name: str, call: Callable[[], R], inputs: object) -> R:
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
def layer_clock(ops: Ops, wait: Callable[[object], None]) -> Iterator[dict[tuple[str, str], Operation]]:
    """Time every layer and op of a model whose handles share `ops`, inside the `with` block; yields the operations seen so far.

    wait: blocks until a value (arrays, or tuples, lists and dicts of them) is computed.
    """
    clock, plain = _Clock(wait), type(ops)
    methods = {name: _clocked_op(clock, getattr(plain, name), name) for name in VOCABULARY}
    # handles, stores and steps all hold this object, so its class is swapped in place
    ops.__class__ = type(f"Clocked{plain.__name__}", (plain,), methods | {"enter": _enter(clock), "part": _part(clock)})
    try:
        yield clock.found
    finally:
        ops.__class__ = plain


def _enter(clock: _Clock) -> Callable[..., object]:
    def enter(ops: Ops, handle: LayerHandle, method: Callable[..., R], *inputs: object) -> R:
        return clock.run(block_of(handle.path), GLUE, lambda: method(ops, handle, *inputs), inputs)

    return enter


def _part(clock: _Clock) -> Callable[..., object]:
    def part(ops: Ops, name: str, function: Callable[..., R], *inputs: object) -> R:
        return clock.run(name, GLUE, lambda: function(*inputs), inputs)

    return part


def _clocked_op(clock: _Clock, original: Callable[..., R], name: str) -> Callable[..., R]:
    def call(self: Ops, *arguments: object, **options: object) -> R:
        top = clock.stack[-1] if clock.stack else None
        if top is None or top.name != GLUE:  # an op inside another op is charged to the outer one
            return original(self, *arguments, **options)
        return clock.run(top.block, name, lambda: original(self, *arguments, **options), arguments)

    return call
