"""The primitives of the op vocabulary, which every back end must implement. `edgeformer.ops` builds on them.

Tensors support `+ - * / @ &` and unary `-` with numbers on either side; a number is converted to the other operand's dtype.
Axes and sizes are Python ints unless they come from `shape`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic

from edgeformer.ops.tensor import Size, T


class Primitives(ABC, Generic[T]):
    """The methods every back end must implement, on its own tensors."""

    @abstractmethod
    def shape(self, x: T, axis: int) -> Size:
        """The size of one axis: an int, or a symbolic int64 scalar tensor of shape `[1]` in a graph."""

    @abstractmethod
    def reshape(self, x: T, sizes: Sequence[Size]) -> T:
        """Change the shape; 0 keeps the size of the same axis, -1 is inferred."""

    @abstractmethod
    def permute(self, x: T, axes: Sequence[int]) -> T:
        """Reorder all axes."""

    @abstractmethod
    def expand_dims(self, x: T, axis: int) -> T:
        """Insert an axis of size 1."""

    @abstractmethod
    def concat(self, xs: Sequence[T], axis: int) -> T:
        """Concatenate along an axis."""

    @abstractmethod
    def split(self, x: T, sizes: Sequence[int], axis: int) -> Sequence[T]:
        """Split an axis into pieces of the given sizes."""

    @abstractmethod
    def last(self, x: T, count: Size) -> T:
        """The last `count` entries of axis 1 of `[B, T, ...]`; 0 means all of them."""

    @abstractmethod
    def repeat_heads(self, x: T, count: int) -> T:
        """`[B, G, S, K] -> [B, G·count, S, K]`, each head repeated `count` times consecutively."""

    @abstractmethod
    def mean(self, x: T) -> T:
        """Mean over the last axis, kept with size 1."""

    @abstractmethod
    def sum(self, x: T, axis: int, *, keep: bool = False) -> T:
        """Sum over one axis."""

    @abstractmethod
    def largest(self, x: T) -> T:
        """The largest element of an integer tensor, as a tensor of shape `[1]`."""

    @abstractmethod
    def cumsum(self, x: T) -> T:
        """Cumulative sum over axis 1 of an integer tensor `[B, S]`."""

    @abstractmethod
    def rsqrt(self, x: T) -> T:
        """1 / sqrt(x)."""

    @abstractmethod
    def exp(self, x: T) -> T:
        """e ** x."""

    @abstractmethod
    def sin(self, x: T) -> T:
        """Sine."""

    @abstractmethod
    def cos(self, x: T) -> T:
        """Cosine."""

    @abstractmethod
    def tanh(self, x: T) -> T:
        """Hyperbolic tangent."""

    @abstractmethod
    def sigmoid(self, x: T) -> T:
        """1 / (1 + e ** -x)."""

    @abstractmethod
    def erf(self, x: T) -> T:
        """The Gauss error function."""

    @abstractmethod
    def relu(self, x: T) -> T:
        """max(x, 0)."""

    @abstractmethod
    def softmax(self, x: T) -> T:
        """Softmax over the last axis, in the input's dtype."""

    @abstractmethod
    def take(self, table: T, ids: T) -> T:
        """Rows of `table` by integer ids: `ids.shape + table.shape[1:]`."""

    @abstractmethod
    def topk(self, x: T, count: int) -> tuple[T, T]:
        """The `count` largest entries of the last axis, in descending order, and their int64 indices."""

    @abstractmethod
    def where(self, condition: T, a: float, b: float) -> T:
        """float32 tensor: `a` where `condition` is true, else `b`."""

    @abstractmethod
    def equal(self, a: T, b: T | float) -> T:
        """Elementwise a == b."""

    @abstractmethod
    def less(self, a: T | float, b: T | float) -> T:
        """Elementwise a < b."""

    @abstractmethod
    def clip(self, x: T, low: float, high: float) -> T:
        """Clamp a tensor to `[low, high]`."""

    @abstractmethod
    def floor_divide(self, x: T, count: int) -> T:
        """x // count for an integer tensor; rounding of negative numbers depends on the back end."""

    @abstractmethod
    def arange(self, count: int, like: T) -> T:
        """The int64 tensor 0 .. count-1 for a static count, on the device of `like`."""

    @abstractmethod
    def cast(self, x: T, like: T) -> T:
        """`x` in the dtype of the tensor `like`."""

    @abstractmethod
    def f32(self, x: T) -> T:
        """`x` in float32 (float64, the oracle's precision, stays float64)."""

    @abstractmethod
    def boolean(self, x: T) -> T:
        """An integer tensor as booleans: true where it is not 0."""
