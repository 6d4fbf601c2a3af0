"""Values of a Core AI graph, and the constants that its operations take.

The dialect has no 64-bit types. Its shape inference sees constants only: a shape that is a `concat` loses all static sizes, so
static sizes are kept here and at most one dynamic size is left to be inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeformer.exporters.coreai.package import c, ir

END = 2**31 - 1
"""The end of a slice that goes to the end of its axis."""
_DTYPES = {"f32": np.float32, "f16": np.float16, "si32": np.int32, "ui32": np.uint32, "i1": np.bool_}


@dataclass(frozen=True)
class CoreTensor:
    """A value of the graph.

    value: the SSA value; dims: its sizes, None where dynamic; dtype: numpy's name of its type.
    """

    value: Any
    dims: tuple[int | None, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.dims)

    def combine(self, op: Callable[..., Any], other: CoreTensor | float, *, swapped: bool = False) -> CoreTensor:
        """An elementwise operation with broadcasting; a number is taken in this value's dtype."""
        right = other.value if isinstance(other, CoreTensor) else c().constant(np.asarray(other, self.dtype))
        return tensor(op(right, self.value) if swapped else op(self.value, right))

    def __add__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_add, other)

    def __radd__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_add, other, swapped=True)

    def __sub__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_sub, other)

    def __rsub__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_sub, other, swapped=True)

    def __mul__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_mul, other)

    def __rmul__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_mul, other, swapped=True)

    def __truediv__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_divide, other)

    def __rtruediv__(self, other: CoreTensor | float) -> CoreTensor:
        return self.combine(c().broadcasting_divide, other, swapped=True)

    def __and__(self, other: CoreTensor) -> CoreTensor:
        return self.combine(c().broadcasting_and, other)

    def __matmul__(self, other: CoreTensor) -> CoreTensor:
        return self.combine(c().broadcasting_batch_matmul, other)

    def __neg__(self) -> CoreTensor:
        return self * -1


Part = int | CoreTensor
"""A size or index: known, or a value of shape [1]."""


def tensor(value: Any) -> CoreTensor:
    """A value with the sizes and dtype of its type."""
    kind = ir().RankedTensorType(value.type)
    dims = tuple(None if size < 0 else size for size in kind.shape)
    return CoreTensor(value, dims, np.dtype(_DTYPES[str(kind.element_type)]))


def ints(*numbers: int) -> Any:
    """A constant vector of 32-bit integers."""
    return c().constant(np.array(numbers, np.int32))


def axes(*numbers: int) -> Any:
    """A constant vector of axes."""
    return c().constant(np.array(numbers, np.uint32))


def scalar(number: int) -> Any:
    """A constant 32-bit integer."""
    return c().constant(np.int32(number))


def vector(parts: Sequence[Part]) -> Any:
    """A vector of sizes or indices; a constant if all are known."""
    known = [p for p in parts if isinstance(p, int)]
    if len(known) == len(parts):
        return ints(*known)
    return c().concat(scalar(0), [p.value if isinstance(p, CoreTensor) else ints(p) for p in parts])


def reshaped(value: Any, sizes: Sequence[Part]) -> CoreTensor:
    """A value in another shape, whose type is told where the operation can't infer it: with two dynamic sizes."""
    if sum(isinstance(s, CoreTensor) for s in sizes) == 1 and -1 not in [s for s in sizes if isinstance(s, int)]:
        sizes = [-1 if isinstance(s, CoreTensor) else s for s in sizes]
    if not any(isinstance(s, CoreTensor) for s in sizes):
        return tensor(c().reshape(value, vector(sizes)))
    dynamic = ir().ShapedType.get_dynamic_size()
    known = [s if isinstance(s, int) and s >= 0 else dynamic for s in sizes]
    kind = ir().RankedTensorType.get(known, ir().RankedTensorType(value.type).element_type)
    return tensor(c().ReshapeOp(value, vector(sizes), results=[kind]).result)


def cut(value: Any, starts: Sequence[Part], ends: Sequence[Part]) -> Any:
    """The part of a value from `starts` to `ends` along every axis."""
    return c().slice_(value, vector(starts), vector(ends), ints(*[1] * len(starts)))
