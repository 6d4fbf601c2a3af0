"""Where the time of a forward pass goes: operations, each in a block (attention, ffn, norm, head, other).

Our own back ends all enter layers by `ops.enter` and compute by methods of `ops`, so one clock around those profiles every one
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
from edgeformer.ops.handle import LayerHandle

BLOCKS = ("attention", "ffn", "norm", "head", "other")
GLUE = "linear maps and glue"
"""The name of what a layer does outside the vocabulary's ops."""
VOCABULARY = tuple(
    n for n, f in inspect.getmembers(Ops, inspect.isfunction) if n[0] != "_" and n not in ("enter", "part")
)
"""The ops that are clocked."""


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
def layer_clock(ops: Ops, wait: Callable[[Any], None]) -> Iterator[dict[Any, Operation]]:
    """Clock every layer and op of a model whose handles share `ops` while the block runs; the operations are those seen so far.

    wait: makes sure that a value (arrays, or tuples, lists and dicts of them) is computed.
    """
    clock, plain = _Clock(wait), type(ops)
    methods = {name: _clocked_op(clock, getattr(plain, name), name) for name in VOCABULARY}
    # handles, stores and steps all hold this object, so it is what has to change
    ops.__class__ = type(f"Clocked{plain.__name__}", (plain,), methods | {"enter": _enter(clock), "part": _part(clock)})
    try:
        yield clock.found
    finally:
        ops.__class__ = plain


def _enter(clock: _Clock) -> Any:
    def enter(ops: Ops, handle: LayerHandle, method: Callable[..., Any], *inputs: Any) -> Any:
        return clock.run(block_of(handle.path), GLUE, lambda: method(ops, handle, *inputs), inputs)

    return enter


def _part(clock: _Clock) -> Any:
    def part(ops: Ops, name: str, function: Callable[..., Any], *inputs: Any) -> Any:
        return clock.run(name, GLUE, lambda: function(*inputs), inputs)

    return part


def _clocked_op(clock: _Clock, original: Any, name: str) -> Any:
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        top = clock.stack[-1] if clock.stack else None
        if top is None or top.name != GLUE:  # an op in an op is part of it
            return original(self, *arguments, **options)
        return clock.run(top.block, name, lambda: original(self, *arguments, **options), arguments)

    return call
