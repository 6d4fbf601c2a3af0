"""The op vocabulary's primitives as operations of Core AI's dialect. Fused ops have their default bodies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeformer.exporters.coreai.package import c
from edgeformer.exporters.coreai.values import END, CoreTensor, Part, axes, cut, ints, reshaped, scalar, tensor, vector
from edgeformer.ops import Ops


class CoreAiOps(Ops[CoreTensor]):
    """The primitives."""

    def shape(self, x, axis) -> Part:
        axis %= x.ndim
        size = x.dims[axis]
        return tensor(cut(c().cast(c().get_shape(x.value), np.int32), [axis], [axis + 1])) if size is None else size

    def reshape(self, x, sizes):
        whole = [self.shape(x, i) if isinstance(s, int) and s == 0 else s for i, s in enumerate(sizes)]
        return reshaped(x.value, whole)

    def permute(self, x, axes_):
        return tensor(c().transpose(x.value, axes(*axes_)))

    def expand_dims(self, x, axis):
        return tensor(c().expand_dims(x.value, ints(axis)))

    def concat(self, xs: Sequence[CoreTensor], axis):
        return tensor(c().concat(scalar(axis % xs[0].ndim), [x.value for x in xs]))

    def split(self, x, sizes, axis):
        return [tensor(v) for v in c().split(x.value, axes(*sizes), scalar(axis % x.ndim))]

    def last(self, x, count):
        if isinstance(count, int) and count == 0:
            return x
        size = self.shape(x, 1)
        if isinstance(size, int) and isinstance(count, int):
            start: Part = size - count
        else:
            start = (size if isinstance(size, CoreTensor) else tensor(ints(size))) - count
        return tensor(cut(x.value, [0, start, *[0] * (x.ndim - 2)], [END] * x.ndim))

    def repeat_heads(self, x, count):
        b, g, s, d = (self.shape(x, i) for i in range(4))
        wide = c().broadcast_to(c().expand_dims(x.value, ints(2)), vector([b, g, count, s, d]))
        heads = x.dims[1]
        assert heads is not None
        return reshaped(wide, [b, heads * count, s, d])

    def mean(self, x):
        return tensor(c().reduce_mean(x.value, ints(-1)))

    def sum(self, x, axis, *, keep=False):
        y = c().reduce_sum(x.value, ints(axis))
        return tensor(y if keep else c().shrink_dims(y, ints(axis)))

    def largest(self, x):
        return tensor(c().reshape(c().reduce_max(x.value, ints(*range(x.ndim))), ints(1)))

    def cumsum(self, x):
        return tensor(c().scan(x.value, c().constant(np.uint32(1)), c().constant(np.bool_(False)), "sum"))

    def rsqrt(self, x):
        return tensor(c().rsqrt(x.value))

    def exp(self, x):
        return tensor(c().exp(x.value))

    def sin(self, x):
        return tensor(c().sin(x.value))

    def cos(self, x):
        return tensor(c().cos(x.value))

    def tanh(self, x):
        return tensor(c().tanh(x.value))

    def sigmoid(self, x):
        return tensor(c().sigmoid(x.value))

    def erf(self, x):
        return tensor(c().erf(x.value))

    def relu(self, x):
        return tensor(c().relu(x.value))

    def softmax(self, x):
        return tensor(c().softmax(x.value, scalar(-1)))

    def take(self, table, ids):
        return tensor(c().gather_nd(table.value, c().expand_dims(ids.value, ints(-1))))

    def topk(self, x, count):
        yes, n = c().constant(np.bool_(True)), x.ndim
        order = c().cast(c().argsort(x.value, scalar(n - 1), yes, yes), np.int32)
        order = cut(order, [0] * n, [*[END] * (n - 1), count])
        return tensor(c().gather_along_axis(x.value, order, scalar(n - 1))), tensor(order)

    def where(self, condition, a, b):
        return tensor(c().cast(condition.value, np.float32)) * (a - b) + b

    def equal(self, a, b):
        return a.combine(c().broadcasting_equal, b)

    def less(self, a, b):
        if isinstance(b, CoreTensor):
            return b.combine(c().broadcasting_greater, a)
        assert isinstance(a, CoreTensor)
        return a.combine(c().broadcasting_greater, b, swapped=True)

    def clip(self, x, low, high):
        return x.combine(c().broadcasting_maximum, low).combine(c().broadcasting_minimum, high)

    def floor_divide(self, x, count):
        return x.combine(c().broadcasting_floor_divide, count)

    def arange(self, count, like):
        return tensor(c().constant(np.arange(count, dtype=np.int32)))

    def cast(self, x, like):
        return self.cast_to(x, like.dtype)

    def cast_to(self, x: CoreTensor, dtype: type | np.dtype) -> CoreTensor:
        """`x` in a dtype."""
        return x if x.dtype == dtype else tensor(c().cast(x.value, np.dtype(dtype).type))

    def f32(self, x):
        return self.cast_to(x, np.float32)

    def boolean(self, x):
        return tensor(c().not_(c().broadcasting_equal(x.value, scalar(0))))

    def act_silu(self, x):
        return tensor(c().silu(x.value))
