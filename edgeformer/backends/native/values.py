"""What layers compute with while the native back end records them: rows of activations, weights, positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeformer.backends.native.program import Buffer, Constant, Op
from edgeformer.errors import EdgeformerError

if TYPE_CHECKING:
    from edgeformer.backends.native.recorder import Recorder
    from edgeformer.layers.rope import Rope


class NotCovered(EdgeformerError):
    """An op that the native engine has no instruction for."""


@dataclass(frozen=True)
class Positions:
    """The new tokens' positions, plus `offset`."""

    offset: int = 0

    def __add__(self, other: int) -> Positions:
        return Positions(self.offset + other)


@dataclass(frozen=True)
class TokenIds:
    """The new tokens' ids."""


@dataclass(frozen=True)
class TokenTypes:
    """The new tokens' types."""


@dataclass(frozen=True)
class RealTokens:
    """Which tokens are no padding: all that the engine sees."""


@dataclass(frozen=True)
class FirstRow:
    """The first row of a table, for every token."""


@dataclass(frozen=True)
class Vector:
    """A vector of weights, or computed from one."""

    constant: Constant
    size: int

    def _with(self, change: Callable[[np.ndarray], np.ndarray]) -> Vector:
        before = self.constant
        return Vector(Constant(before.names, lambda *x: change(before.values(x))), self.size)

    def __add__(self, other: float) -> Vector:
        self._check(other)
        return self._with(lambda x: x + np.float32(other))

    def __mul__(self, other: float) -> Vector:
        self._check(other)
        return self._with(lambda x: x * np.float32(other))

    __radd__, __rmul__ = __add__, __mul__

    def _check(self, other: object) -> None:
        if not isinstance(other, (int, float)):
            raise NotCovered("the native back end combines a vector of weights with numbers only")

    def repeated(self, width: int) -> Constant:
        """The vector's constant; one number is repeated `width` times."""
        if self.size == width:
            return self.constant
        if self.size == 1:
            return self._with(lambda x: np.repeat(x, width)).constant
        raise NotCovered(f"the native back end can't combine a vector of {self.size} with rows of {width}")


@dataclass(frozen=True)
class CachedValue:
    """What a layer has put into its cache, past and new; `parts`: its names, where they lie side by side."""

    cache: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """Rows `[B, T, width]`: columns `at` .. `at + width` of a buffer. `heads`: seen as [B, T, heads, width / heads].
    `step`: columns from one head to the next, if not that width. `turned`: the rotation still to be applied to its heads.
    """

    ops: Recorder
    buffer: Buffer
    at: int
    width: int
    heads: int = 1
    turned: Rope | None = None
    step: int | None = None

    dtype = np.dtype(np.float32)

    @property
    def head_step(self) -> int:
        """Columns from one head to the next."""
        return self.width // self.heads if self.step is None else self.step

    @property
    def end(self) -> int:
        """The column after its last."""
        return self.at + (self.heads - 1) * self.head_step + self.width // self.heads

    def overlaps(self, other: Value) -> bool:
        """Whether the two share columns of a buffer; of heads that lie apart, those between count, too."""
        return self.buffer == other.buffer and self.at < other.end and other.at < self.end

    def __add__(self, other: Value | Vector | float) -> Value:
        return self.ops.combine(Op.ADD, self, other)

    def __mul__(self, other: Value | Vector | float) -> Value:
        return self.ops.combine(Op.MUL, self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self + other * -1.0

    def __truediv__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            return self * (1 / other)
        if other.width != 1:
            raise NotCovered("the native back end divides by numbers, or by one number per row")
        y = self.ops.like(self)
        self.ops.record(Op.DIVIDE, y, self, other=other, width=self.width)
        return y

    def __neg__(self) -> Value:
        return self * -1.0

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Value | float) -> Value:
        return -self + other

    def __matmul__(self, other: object) -> Value:
        raise NotCovered("the native back end multiplies by weights only")

    def __and__(self, other: object) -> Value:
        raise NotCovered("the native back end has no logic on activations")
