"""The types of the op vocabulary. A back end fills in its own tensor class: `class TorchOps(EagerOps[torch.Tensor])`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np

Opaque: TypeAlias = Any
"""A value that only its back end reads, such as a mask; layers pass it through."""
Size: TypeAlias = Any
"""A size: an int, or in a graph, where sizes are symbolic, an int64 tensor of shape [1]."""


class Tensor(Protocol):
    """The tensors layers compute with: numpy, torch or MLX arrays, or values of an ONNX graph.

    Operators take numbers on either side. Read shapes with `ops.shape`, since graphs have no static ones.
    """

    @property
    def dtype(self) -> object: ...
    def __add__(self, other: Self | float, /) -> Self: ...
    def __radd__(self, other: Self | float, /) -> Self: ...
    def __sub__(self, other: Self | float, /) -> Self: ...
    def __rsub__(self, other: Self | float, /) -> Self: ...
    def __mul__(self, other: Self | float, /) -> Self: ...
    def __rmul__(self, other: Self | float, /) -> Self: ...
    def __truediv__(self, other: Self | float, /) -> Self: ...
    def __matmul__(self, other: Self, /) -> Self: ...
    def __and__(self, other: Self, /) -> Self: ...
    def __neg__(self) -> Self: ...


class Array(Tensor, Protocol):
    """A tensor with concrete values, as in numpy, torch and MLX."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def reshape(self, shape: Sequence[int], /) -> Self: ...
    def cumsum(self, axis: int, /) -> Self: ...
    def max(self) -> Self: ...
    def __getitem__(self, index: Self | tuple[slice, slice], /) -> Self: ...
    def __lt__(self, other: Self | float, /) -> Self: ...
    def __floordiv__(self, other: int, /) -> Self: ...


T = TypeVar("T", bound=Tensor)
"""The tensor class of a back end."""
T_co = TypeVar("T_co", bound=Tensor, covariant=True)
A = TypeVar("A", bound=Array)
"""The array class of an eager back end."""


class LinearMap(Protocol[T]):
    """A back end's `Linear`: `[..., inputs] -> [..., outputs]`."""

    def __call__(self, x: T, /) -> T: ...


class StackedMaps(Protocol[T]):
    """A back end's `Stacked`."""

    def each(self, x: T, /) -> T:
        """[B, count or 1, T, inputs] -> [B, count, T, outputs]."""
        ...


class DropoutMap(Protocol[T]):
    """A training back end's `Dropout`."""

    p: float
    training: bool

    def __call__(self, x: T, /) -> T: ...


class MaskRule(Protocol):
    """What `ops.mask` reads of a `Mask`."""

    @property
    def causal(self) -> bool: ...
    @property
    def window(self) -> int | None: ...
    @property
    def chunk(self) -> int | None: ...
    @property
    def prefix(self) -> bool: ...
    @property
    def plain(self) -> bool: ...


class RotaryScheme(Protocol):
    """What back ends read of a `Rope`."""

    interleaved: ClassVar[bool]

    @property
    def dim(self) -> int: ...
    @property
    def per_length(self) -> bool: ...
    def frequencies(self) -> np.ndarray: ...
    def magnitude(self) -> float: ...


class HasPositions(Protocol[T_co]):
    """What position schemes read of a `Step`."""

    @property
    def positions(self) -> T_co: ...


class CachePlace(Protocol):
    """A layer's place in a KV cache; `step.Slot` is one."""

    @property
    def store(self) -> Any: ...
    @property
    def path(self) -> str: ...
    def append(self, **tensors: T) -> tuple[T, ...]: ...
