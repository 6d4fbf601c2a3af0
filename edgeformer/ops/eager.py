"""Primitives shared by array libraries: those built from Python operators, and elementwise functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgeformer.ops.fused import Ops
from edgeformer.ops.tensor import A


class Elementwise(Protocol[A]):
    """A primitive of one tensor, as a method of `Ops`."""

    def __call__(_method, self: Ops[A], x: A) -> A: ...


def elementwise(function: Callable[[A], A]) -> Elementwise[A]:
    """Make a primitive from a library's elementwise function: `exp = elementwise(np.exp)`."""

    def apply(self: Ops[A], x: A) -> A:
        return function(x)

    return apply


class EagerOps(Ops[A]):
    """The vocabulary for a library whose arrays support shapes, slicing, operators, `reshape`, `cumsum` and `max`."""

    def shape(self, x, axis):
        return x.shape[axis]

    def reshape(self, x, sizes):
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])

    def last(self, x, count):
        return x if count == 0 else x[:, -count:]

    def largest(self, x):
        return x.max().reshape([1])

    def cumsum(self, x):
        return x.cumsum(1)

    def take(self, table, ids):
        return table[ids]

    def equal(self, a, b):
        return a == b

    def less(self, a, b):
        return a < b  # pyright: ignore[reportOperatorIssue] - one of them is an array

    def floor_divide(self, x, count):
        return x // count

    def boolean(self, x):
        return x != 0
