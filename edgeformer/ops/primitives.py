"""The primitives of the op vocabulary: what a back end must implement. `edgeformer.ops` builds on them.

Tensors support `+ - * / @ &` and unary `-` with numbers on either side; a number takes the other operand's dtype. Axes and
sizes are Python ints unless they come from `shape`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Primitives(ABC):
    """What a back end must implement. Every method takes and returns the back end's own tensors."""

    @abstractmethod
    def shape(self, x: Any, axis: int) -> Any:
        """The size of one axis: an int, or a symbolic int64 scalar tensor of shape `[1]` in a graph."""

    @abstractmethod
    def reshape(self, x: Any, sizes: Sequence[Any]) -> Any:
        """New shape; 0 keeps the size of the same axis, -1 is inferred."""

    @abstractmethod
    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        """Reorder all axes."""

    @abstractmethod
    def expand_dims(self, x: Any, axis: int) -> Any:
        """Insert an axis of size 1."""

    @abstractmethod
    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        """Join along an axis."""

    @abstractmethod
    def split(self, x: Any, sizes: Sequence[int], axis: int) -> Sequence[Any]:
        """Cut an axis into pieces of the given sizes."""

    @abstractmethod
    def last(self, x: Any, count: Any) -> Any:
        """The last `count` entries of axis 1 of `[B, T, ...]`; 0 means all of them."""

    @abstractmethod
    def repeat_heads(self, x: Any, count: int) -> Any:
        """`[B, G, S, K] -> [B, G·count, S, K]`, each head `count` times in a row."""

    @abstractmethod
    def mean(self, x: Any) -> Any:
        """Mean over the last axis, kept with size 1."""

    @abstractmethod
    def sum(self, x: Any, axis: int, *, keep: bool = False) -> Any:
        """Sum over one axis."""

    @abstractmethod
    def largest(self, x: Any) -> Any:
        """The largest element of an integer tensor, as a tensor of shape `[1]`."""

    @abstractmethod
    def cumsum(self, x: Any) -> Any:
        """Running sum over axis 1 of an integer tensor `[B, S]`."""

    @abstractmethod
    def rsqrt(self, x: Any) -> Any:
        """1 / sqrt(x)."""

    @abstractmethod
    def exp(self, x: Any) -> Any:
        """e ** x."""

    @abstractmethod
    def sin(self, x: Any) -> Any:
        """Sine."""

    @abstractmethod
    def cos(self, x: Any) -> Any:
        """Cosine."""

    @abstractmethod
    def tanh(self, x: Any) -> Any:
        """Hyperbolic tangent."""

    @abstractmethod
    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + e ** -x)."""

    @abstractmethod
    def erf(self, x: Any) -> Any:
        """The Gauss error function."""

    @abstractmethod
    def relu(self, x: Any) -> Any:
        """max(x, 0)."""

    @abstractmethod
    def softmax(self, x: Any) -> Any:
        """Softmax over the last axis, in the input's dtype."""

    @abstractmethod
    def take(self, table: Any, ids: Any) -> Any:
        """Rows of `table` by integer ids: `ids.shape + table.shape[1:]`."""

    @abstractmethod
    def topk(self, x: Any, count: int) -> tuple[Any, Any]:
        """The `count` largest entries of the last axis, in falling order, and their int64 indices."""

    @abstractmethod
    def where(self, condition: Any, a: float, b: float) -> Any:
        """float32 tensor: `a` where the boolean tensor holds, else `b`."""

    @abstractmethod
    def equal(self, a: Any, b: Any) -> Any:
        """Elementwise a == b."""

    @abstractmethod
    def less(self, a: Any, b: Any) -> Any:
        """Elementwise a < b."""

    @abstractmethod
    def clip(self, x: Any, low: float, high: float) -> Any:
        """Limit a tensor to `[low, high]`."""

    @abstractmethod
    def floor_divide(self, x: Any, count: int) -> Any:
        """x // count of an integer tensor; what it gives for negative numbers is up to the back end."""

    @abstractmethod
    def arange(self, count: int, like: Any) -> Any:
        """The int64 tensor 0 .. count-1 for a static count, on the device of `like`."""

    @abstractmethod
    def cast(self, x: Any, like: Any) -> Any:
        """`x` in the dtype of the tensor `like`."""

    @abstractmethod
    def f32(self, x: Any) -> Any:
        """`x` in float32 (float64 stays float64: the oracle's precision)."""

    @abstractmethod
    def boolean(self, x: Any) -> Any:
        """An integer tensor as booleans: true where it is not 0."""
