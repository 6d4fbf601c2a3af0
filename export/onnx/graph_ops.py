"""The op vocabulary as ONNX nodes. Plain ai.onnx operators only: this is the `portable` lowering.

A `GraphTensor` knows its dtype and the static part of its shape, so that Python numbers take the other operand's dtype, no-op
casts are omitted, and errors surface when the graph is built, not when a runtime loads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import onnx_ir as ir

from edgeformer.errors import ExportError
from edgeformer.ops import Ops
from edgeformer.ops.tensor import Size
from edgeformer.weights.formats import GROUP, Format

OPSET, IR_VERSION, DOMAIN, CONTRIB = 23, 10, "edgeformer", "com.microsoft"
FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
Dims = tuple[int | None, ...]
Operand = Union["GraphTensor", np.ndarray, float]


class GraphTensor:
    """A value of the graph under construction: `dims` holds ints where the size is static, None elsewhere."""

    def __init__(self, ops: GraphOps, value: ir.Value, dtype: ir.DataType, dims: Dims):
        self.ops, self.value, self.dtype, self.dims = ops, value, dtype, dims

    @property
    def ndim(self) -> int:
        """Rank."""
        return len(self.dims)

    def size(self, axis: int) -> int:
        """The size of an axis that must be static."""
        size = self.dims[axis]
        assert size is not None
        return size

    def __add__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Add", self, other)

    def __radd__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Add", other, self)

    def __sub__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Sub", self, other)

    def __rsub__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Sub", other, self)

    def __mul__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Mul", self, other)

    def __rmul__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Mul", other, self)

    def __truediv__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Div", self, other)

    def __rtruediv__(self, other: Operand) -> GraphTensor:
        return self.ops.binary("Div", other, self)

    def __and__(self, other: GraphTensor) -> GraphTensor:
        return self.ops.binary("And", self, other)

    def __neg__(self) -> GraphTensor:
        return self.ops.unary("Neg", self)

    def __matmul__(self, other: GraphTensor) -> GraphTensor:
        dims = broadcast(self.dims[:-2], other.dims[:-2]) + (self.dims[-2], other.dims[-1])
        return self.ops.node("MatMul", [self, other], dims=dims)


def broadcast(a: Dims, b: Dims) -> Dims:
    """NumPy's broadcasting rule on partly static shapes."""
    n = max(len(a), len(b))
    pairs = zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True)
    out = []
    for x, y in pairs:
        if x is not None and y is not None and x != y and 1 not in (x, y):
            raise ExportError(f"shapes {a} and {b} can't be broadcast")
        out.append(y if x == 1 else x if y == 1 or x is not None else y)
    return tuple(out)


class GraphOps(Ops[GraphTensor]):
    """Collects nodes. One instance builds one graph or one function body; `compute` is the float dtype of activations."""

    def __init__(self, compute: ir.DataType = FLOAT, accuracy_level: int | None = None):
        self.compute, self.accuracy_level = compute, accuracy_level
        self.nodes: list[ir.Node] = []
        self.scopes: list[str] = []
        self._constants: dict[tuple, ir.Value] = {}
        self._counts: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------------- building

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes made inside: `layers.0/attention/q/MatMul`."""
        self.scopes.append(name)
        try:
            yield
        finally:
            self.scopes.pop()

    def enter(self, handle, method, *inputs):
        with self.scope(handle._scope()):
            return method(self, handle, *inputs)

    def node(
        self,
        op: str,
        inputs: Sequence[Any],
        *,
        dims: Dims | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        overload: str = "",
        **attributes: Any,
    ) -> GraphTensor:
        """Add a node with one output, with the first input's dtype and dims unless given."""
        first = inputs[0]
        described = (dtype or first.dtype, first.dims if dims is None else dims)
        (out,) = self.nodes_out(op, inputs, [described], domain=domain, overload=overload, **attributes)
        return out

    def nodes_out(
        self,
        op: str,
        inputs: Sequence[Any],
        outputs: Sequence[tuple[ir.DataType, Dims]],
        *,
        domain: str = "",
        overload: str = "",
        **attributes: Any,
    ) -> list[GraphTensor]:
        """Add a node with any number of outputs, each described by (dtype, dims)."""
        values = [self._value(x) for x in inputs]
        while values and values[-1] is None:
            values.pop()
        base = "/".join([*self.scopes, op])
        count = self._counts[base] = self._counts.get(base, -1) + 1
        name = f"{base}_{count}" if count else base
        node = ir.node(op, values, attributes, domain=domain, overload=overload, num_outputs=len(outputs), name=name)
        self.nodes.append(node)
        made = []
        for i, (value, (dtype, dims)) in enumerate(zip(node.outputs, outputs, strict=True)):
            value.name = name + "/out" + (str(i) if i else "")
            made.append(GraphTensor(self, value, dtype, dims))
        return made

    def _value(self, x: Operand | None) -> ir.Value | None:
        if x is None:
            return None
        return (x if isinstance(x, GraphTensor) else self.constant(x)).value

    def constant(self, x: np.ndarray | float) -> GraphTensor:
        """A NumPy array as a Constant node; equal arrays share one."""
        array = np.asarray(x)
        dtype = ir.DataType.from_numpy(array.dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            number = self._counts["constant"] = self._counts.get("constant", -1) + 1
            name = f"constant_{number}"
            node = ir.node("Constant", [], {"value": ir.tensor(array, name=name)}, name=name)
            node.outputs[0].name = name
            self.nodes.append(node)
            self._constants[key] = node.outputs[0]
        return GraphTensor(self, self._constants[key], dtype, array.shape)

    def ints(self, *values: int) -> GraphTensor:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def binary(self, op: str, a: Operand, b: Operand, dtype: ir.DataType | None = None) -> GraphTensor:
        """An elementwise node of two operands; a number takes the tensor's dtype.

        Raises:
            ExportError: the tensors' dtypes differ, which ONNX doesn't allow.
        """
        like = next(x for x in (a, b) if isinstance(x, GraphTensor))
        a, b = (x if isinstance(x, GraphTensor) else self.constant(np.asarray(x, like.dtype.numpy())) for x in (a, b))
        if a.dtype != b.dtype:
            raise ExportError(
                f"{op} has operands of dtypes {a.dtype.name} and {b.dtype.name} in {'/'.join(self.scopes)}"
            )
        return self.node(op, [a, b], dims=broadcast(a.dims, b.dims), dtype=dtype)

    def unary(self, op: str, x: Operand, **attributes: Any) -> GraphTensor:
        """An elementwise node of one operand."""
        return self.node(op, [x], **attributes)

    # ----------------------------------------------------------------------------------------------- primitives

    def shape(self, x, axis) -> Size:
        axis %= x.ndim
        if x.dims[axis] is not None:
            return x.dims[axis]
        return self.node("Shape", [x], dims=(1,), dtype=INT64, start=axis, end=axis + 1)

    def reshape(self, x, sizes):
        dims = tuple(
            x.dims[i] if s == 0 else s if isinstance(s, int) and s > 0 else None
            for i, s in enumerate(sizes)
            if isinstance(s, (int, GraphTensor))
        )
        if all(isinstance(s, int) for s in sizes):
            target = self.ints(*sizes)
        else:
            parts = [self.ints(s) if isinstance(s, int) else s for s in sizes]
            target = self.node("Concat", parts, dims=(len(sizes),), dtype=INT64, axis=0)
        return self.node("Reshape", [x, target], dims=dims)

    def permute(self, x, axes):
        return self.node("Transpose", [x], dims=tuple(x.dims[a] for a in axes), perm=list(axes))

    def expand_dims(self, x, axis):
        return self.node("Unsqueeze", [x, self.ints(axis)], dims=x.dims[:axis] + (1,) + x.dims[axis:])

    def concat(self, xs, axis):
        sizes = [size for x in xs if (size := x.dims[axis]) is not None]
        dims = list(xs[0].dims)
        dims[axis] = sum(sizes) if len(sizes) == len(xs) else None
        return self.node("Concat", xs, dims=tuple(dims), axis=axis)

    def split(self, x, sizes, axis):
        dims = [list(x.dims) for _ in sizes]
        for d, size in zip(dims, sizes, strict=True):
            d[axis] = size
        outputs = [(x.dtype, tuple(d)) for d in dims]
        return self.nodes_out("Split", [x, self.ints(*sizes)], outputs, axis=axis)

    def last(self, x, count):
        if isinstance(count, int):
            if count == 0:
                return x
            count = self.ints(count)
        start = self.unary("Neg", count)  # count 0 gives start -0 = 0: all positions
        dims = (x.dims[0], None, *x.dims[2:])
        return self.node("Slice", [x, start, self.ints(np.iinfo(np.int64).max), self.ints(1)], dims=dims)

    def repeat_heads(self, x, count):
        b, g, s, d = x.dims[0], x.size(1), x.dims[2], x.dims[3]
        spread = self.node("Expand", [self.expand_dims(x, 2), self.ints(1, 1, count, 1, 1)], dims=(b, g, count, s, d))
        return self.reshape(spread, (0, g * count, -1, d))

    def mean(self, x):
        return self.node("ReduceMean", [x, self.ints(-1)], dims=(*x.dims[:-1], 1), keepdims=1)

    def sum(self, x, axis, *, keep=False):
        axis %= x.ndim
        dims = x.dims[:axis] + ((1,) if keep else ()) + x.dims[axis + 1 :]
        return self.node("ReduceSum", [x, self.ints(axis)], dims=dims, keepdims=int(keep))

    def largest(self, x):
        return self.reshape(self.node("ReduceMax", [x], dims=(), keepdims=0), (1,))

    def cumsum(self, x):
        return self.node("CumSum", [x, self.constant(np.array(1, np.int64))])

    def rsqrt(self, x):
        return self.unary("Reciprocal", self.unary("Sqrt", x))

    def exp(self, x):
        return self.unary("Exp", x)

    def sin(self, x):
        return self.unary("Sin", x)

    def cos(self, x):
        return self.unary("Cos", x)

    def tanh(self, x):
        return self.unary("Tanh", x)

    def sigmoid(self, x):
        return self.unary("Sigmoid", x)

    def erf(self, x):
        return self.unary("Erf", x)

    def relu(self, x):
        return self.unary("Relu", x)

    def softmax(self, x):
        return self.unary("Softmax", x, axis=-1)

    def take(self, table, ids):
        return self.node("Gather", [table, ids], dims=ids.dims + table.dims[1:], axis=0)

    def topk(self, x, count):
        dims = (*x.dims[:-1], count)
        values, ids = self.nodes_out("TopK", [x, self.ints(count)], [(x.dtype, dims), (INT64, dims)], axis=-1)
        return values, ids

    def where(self, condition, a, b):
        return self.node("Where", [condition, np.float32(a), np.float32(b)], dims=condition.dims, dtype=FLOAT)

    def equal(self, a, b):
        return self.binary("Equal", a, b, dtype=BOOL)

    def less(self, a, b):
        return self.binary("Less", a, b, dtype=BOOL)

    def clip(self, x, low, high):
        kind = x.dtype.numpy().type
        return self.node("Clip", [x, kind(low), kind(high)])

    def floor_divide(self, x, count):
        return self.binary("Div", x, count)

    def arange(self, count, like):
        return self.constant(np.arange(count, dtype=np.int64))

    def cast(self, x, like):
        return self.cast_to(x, like.dtype)

    @contextlib.contextmanager
    def subgraph(self) -> Iterator[list[ir.Node]]:
        """Yields the list that nodes go to inside, of a graph that may use what is outside, but not the other way round."""
        outer = self.nodes, self._constants
        self.nodes, self._constants = [], dict(self._constants)
        try:
            yield self.nodes
        finally:
            self.nodes, self._constants = outer

    def cast_to(self, x: GraphTensor, dtype: ir.DataType) -> GraphTensor:
        """`x` in the given dtype; no node is added if it already has it."""
        return x if x.dtype == dtype else self.node("Cast", [x], dtype=dtype, to=dtype.value)

    def f32(self, x):
        return x if x.dtype == ir.DataType.DOUBLE else self.cast_to(x, FLOAT)

    def boolean(self, x):
        return self.cast_to(x, BOOL)

    # ------------------------------------------------------------------- ops with a single ai.onnx operator

    def act_gelu(self, x):
        return self.unary("Gelu", x, approximate="none")

    def act_gelu_tanh(self, x):
        return self.unary("Gelu", x, approximate="tanh")

    def layer_norm(self, x, weight, bias, *, eps):
        if weight is None:
            weight = np.ones(x.size(-1), x.dtype.numpy())
        return self.node("LayerNormalization", [x, weight, bias], axis=-1, epsilon=eps)

    def add_layer_norm(self, x, d, weight, bias, *, eps):
        total = x + d
        return total, self.layer_norm(total, weight, bias, eps=eps)

    # ------------------------------------------------------------------------------------------- quantized weights

    def codes_form(self, shape: tuple[int, ...], format: Format, *, table: bool) -> tuple[ir.DataType, Dims]:
        """The dtype and dims of a weight's codes: signed here, so that DequantizeLinear needs no zero points."""
        return (ir.DataType.INT4 if format.bits == 4 else ir.DataType.INT8), shape

    def dequantized(self, codes: GraphTensor, scales: GraphTensor) -> GraphTensor:
        """The weight, scale · (code − zero). Runtimes fold it at load time or fuse it into the matrix product."""
        return self.node(
            "DequantizeLinear",
            [codes, scales],
            dims=codes.dims,
            dtype=scales.dtype,
            axis=codes.ndim - 1,
            block_size=GROUP,
        )

    def dequantized_stack(self, codes: GraphTensor, scales: GraphTensor, format: Format) -> GraphTensor:
        """A stack of weights `[count, outputs, inputs]`."""
        return self.dequantized(codes, scales)

    def quantized_linear(self, x: GraphTensor, codes: GraphTensor, scales: GraphTensor, format: Format) -> GraphTensor:
        """`x @ weight.T`."""
        return self.linear(x, self.dequantized(codes, scales))

    def quantized_take(self, codes: GraphTensor, scales: GraphTensor, ids: GraphTensor, format: Format) -> GraphTensor:
        """Look up rows of a quantized table by id."""
        return self.take(self.dequantized(codes, scales), ids)

    def linear(self, x: GraphTensor, weight: GraphTensor) -> GraphTensor:
        """`x @ weight.T` for a stored [outputs, inputs] weight. Runtimes fold the transpose at load time."""
        return x @ self.permute(weight, (1, 0))
