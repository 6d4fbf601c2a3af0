"""The types of the op vocabulary. A back end fills in its own tensor class: `class TorchOps(EagerOps[torch.Tensor])`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

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
    def dtype(self) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __and__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Any: ...


class Array(Tensor, Protocol):
    """A tensor with concrete values, as in numpy, torch and MLX."""

    @property
    def shape(self) -> Any: ...
    def reshape(self, *shape: Any) -> Any: ...
    def cumsum(self, axis: Any, /) -> Any: ...
    def max(self) -> Any: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __floordiv__(self, other: Any, /) -> Any: ...


T = TypeVar("T", bound=Tensor)
"""The tensor class of a back end."""
A = TypeVar("A", bound=Array)
"""The array class of an eager back end."""


class LinearMap(Protocol):
    """A back end's `Linear`: `[..., inputs] -> [..., outputs]`."""

    def __call__(self, x: Any, /) -> Any: ...


class StackedMaps(Protocol):
    """A back end's `Stacked`."""

    def each(self, x: Any, /) -> Any:
        """[B, count or 1, T, inputs] -> [B, count, T, outputs]."""
        ...


class DropoutMap(Protocol):
    """A training back end's `Dropout`."""

    p: float
    training: bool

    def __call__(self, x: Any, /) -> Any: ...


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


class HasPositions(Protocol):
    """What position schemes read of a `Step`."""

    @property
    def positions(self) -> Any: ...


class CachePlace(Protocol):
    """A layer's place in a KV cache; `step.Slot` is one."""

    @property
    def store(self) -> Any: ...
    @property
    def path(self) -> str: ...
    def append(self, **tensors: Any) -> tuple[Any, ...]: ...
