"""Parameter declarations as parts of an ONNX graph: initializers, and callables that emit nodes.

A weight's *storage* type may differ from the *compute* type (bf16 weights, float32 arithmetic): then a Cast follows the
initializer, which runtimes fold at load time.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgeformer.exporters.onnx.graph_ops import GraphOps, GraphTensor
from edgeformer.ops.handle import LayerHandle
from edgeformer.spec import Const, Dropout, Layer, Linear, Stacked, Sub, Table, Vector, tensor_name
from edgeformer.weights.formats import SCALES, Format


class LinearHandle:
    """`x @ weight.T + bias`. Operands in a fused op: the weight `[outputs, inputs]`, then the bias if there is one."""

    def __init__(self, ops: GraphOps, tensors: list[Any], path: str):
        self.ops, self.tensors, self.path = ops, tensors, path
        self.format = "Bias" if len(tensors) > 1 else ""

    def rebind(self, ops: GraphOps, tensors: list[Any]) -> LinearHandle:
        """The same map over a function's formal inputs."""
        return LinearHandle(ops, tensors, "")

    def __call__(self, x: GraphTensor) -> GraphTensor:
        if not self.path:
            return self._emit(x)
        with self.ops.scope(self.path.rsplit(".", 1)[-1]):
            return self._emit(x)

    def _emit(self, x: GraphTensor) -> GraphTensor:
        y = self.ops.linear(x, self.tensors[0])
        return y + self.tensors[1] if len(self.tensors) > 1 else y


class QuantizedHandle(LinearHandle):
    """A linear map with a quantized weight. Operands in a fused op: codes, scales, then the bias if there is one."""

    def __init__(self, ops: GraphOps, tensors: list[Any], path: str, stored: Format):
        super().__init__(ops, tensors, path)
        self.stored = stored
        self.format = stored.name.upper() + ("Bias" if len(tensors) > 2 else "")

    def rebind(self, ops: GraphOps, tensors: list[Any]) -> QuantizedHandle:
        return QuantizedHandle(ops, tensors, "", self.stored)

    def _emit(self, x: GraphTensor) -> GraphTensor:
        y = self.ops.quantized_linear(x, self.tensors[0], self.tensors[1], self.stored)
        return y + self.tensors[2] if len(self.tensors) > 2 else y


class StackedHandle:
    """One linear map per entry of axis 1, from a weight `[count, outputs, inputs]`."""

    def __init__(self, ops: GraphOps, tensors: list[Any]):
        self.ops, self.tensors, self.format = ops, tensors, ""

    def rebind(self, ops: GraphOps, tensors: list[Any]) -> StackedHandle:
        """The same maps over a function's formal inputs."""
        return StackedHandle(ops, tensors)

    def each(self, x: GraphTensor) -> GraphTensor:
        """[B, n or 1, T, inputs] -> [B, n, T, outputs]."""
        return x @ self.ops.permute(self.tensors[0], (0, 2, 1))

    def one(self, expert: Any) -> LinearHandle:
        """The map with this number, an int or a scalar tensor."""
        picked = [self.ops.node("Gather", [t, expert], dims=t.dims[1:], axis=0) for t in self.tensors]
        return self._linear(picked)

    def _linear(self, tensors: list[Any]) -> LinearHandle:
        return LinearHandle(self.ops, tensors, "")


class QuantizedStack(StackedHandle):
    """A stack of maps with quantized weights. Operands in a fused op: codes, scales."""

    def __init__(self, ops: GraphOps, tensors: list[Any], stored: Format):
        super().__init__(ops, tensors)
        self.stored = stored
        self.format = stored.name.upper()

    def rebind(self, ops: GraphOps, tensors: list[Any]) -> QuantizedStack:
        return QuantizedStack(ops, tensors, self.stored)

    def each(self, x: GraphTensor) -> GraphTensor:
        weight = self.ops.dequantized_stack(self.tensors[0], self.tensors[1], self.stored)
        return x @ self.ops.permute(weight, (0, 2, 1))

    def _linear(self, tensors: list[Any]) -> LinearHandle:
        return QuantizedHandle(self.ops, tensors, "", self.stored)


class TableHandle:
    """Looks up rows by id; `as_linear` multiplies by the transposed table (a tied head)."""

    def __init__(self, ops: GraphOps, weight: GraphTensor):
        self.ops, self.weight = ops, weight

    def __call__(self, ids: GraphTensor) -> GraphTensor:
        return self.ops.take(self.weight, ids)

    def as_linear(self, x: GraphTensor) -> GraphTensor:
        """[..., width] -> [..., rows]."""
        with self.ops.scope("head"):
            return self.ops.linear(x, self.weight)


class QuantizedTable:
    """An embedding table with a quantized weight."""

    def __init__(self, weights: Initializers, name: str, shape: tuple[int, int], stored: Format):
        self.weights, self.name, self.shape, self.stored = weights, name, shape, stored

    def __call__(self, ids: GraphTensor) -> GraphTensor:
        codes, scales = self.weights.quantized(self.name, self.shape, table=True)
        return self.weights.ops.quantized_take(codes, scales, ids, self.stored)

    def as_linear(self, x: GraphTensor) -> GraphTensor:
        """[..., width] -> [..., rows]."""
        codes, scales = self.weights.quantized(self.name, self.shape, alias=BLOCKS)
        with self.weights.ops.scope("head"):
            return self.weights.ops.quantized_linear(x, codes, scales, self.stored)


BLOCKS = ".blocks"
"""Name suffix of a table's codes as operands of a matrix product: the same bytes in another shape."""


class Initializers:
    """The graph's weights: one initializer per canonical name, followed by a Cast where storage and compute types differ.

    A quantized weight has two: its codes under the canonical name (for a tied embedding declared a second time, in another
    shape), and its scales.

    Args:
        ops: the graph being built.
        storage: canonical name -> how the tensor is stored.
    """

    def __init__(self, ops: GraphOps, storage: dict[str, Any]):
        self.ops, self.storage = ops, storage
        self.values: dict[str, ir.Value] = {}
        self.constants: dict[str, Any] = {}
        self.codes: dict[str, list[str]] = {}
        """Canonical name -> the initializers that hold its codes."""
        self._casts: dict[str, GraphTensor] = {}

    def linear(self, path: str, declaration: Linear, ops: GraphOps) -> LinearHandle:
        """The handle of a linear map."""
        shapes = {tensor_name(path, k): s for k, s in declaration.tensors().items()}
        names = list(shapes)
        rest = [self.weight(name, shapes[name]) for name in names[1:]]
        stored = self.storage[names[0]]
        if isinstance(stored, Format):
            return QuantizedHandle(ops, [*self.quantized(names[0], shapes[names[0]]), *rest], path, stored)
        return LinearHandle(ops, [self.weight(names[0], shapes[names[0]]), *rest], path)

    def quantized(
        self, name: str, shape: tuple[int, ...], *, table: bool = False, alias: str = ""
    ) -> tuple[GraphTensor, GraphTensor]:
        """Codes in the form of the target's matrix products (with `table`, of its lookups), and scales in the compute type."""
        stored = self.storage[name]
        dtype, dims = self.ops.codes_form(shape, stored, table=table)
        if alias and self.ops.codes_form(shape, stored, table=True) == (dtype, dims):
            alias = ""  # lookups use the same form
        full = name + alias
        if full not in self.values:
            self.values[full] = ir.Value(name=full, type=ir.TensorType(dtype), shape=ir.Shape(dims))
            self.codes.setdefault(name, []).append(full)
        scales = self._held(name + SCALES, ir.DataType.FLOAT16, stored.scales_shape(shape))
        return GraphTensor(self.ops, self.values[full], dtype, dims), scales

    def weight(self, name: str, shape: tuple[int, ...]) -> GraphTensor:
        """The weight in the compute type."""
        return self._held(name, self.storage[name], shape)

    def _held(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> GraphTensor:
        if name not in self._casts:
            self.values[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
            stored = GraphTensor(self.ops, self.values[name], dtype, shape)
            scopes, self.ops.scopes = self.ops.scopes, ["weights", name]
            self._casts[name] = self.ops.cast_to(stored, self.ops.compute)
            self.ops.scopes = scopes
        return self._casts[name]

    def constant(self, name: str, array: Any) -> GraphTensor:
        """A large build-time constant (a RoPE table) as an initializer."""
        dtype = ir.DataType.from_numpy(array.dtype)
        if name not in self.constants:
            self.constants[name] = array
            self.values[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
        return GraphTensor(self.ops, self.values[name], dtype, array.shape)


class GraphHandle(LayerHandle):
    """A layer with its parameters in a graph."""

    def __init__(self, ops: GraphOps, layer: Layer, width: int, weights: Initializers, path: str = ""):
        self.ops, self.layer, self.path = ops, layer, path
        self.hold(width, lambda declaration, place: self._make(declaration, place, weights))

    def _make(self, declaration: Any, path: str, weights: Initializers) -> Any:
        match declaration:
            case Linear():
                return weights.linear(path, declaration, self.ops)
            case Stacked():
                ((key, shape),) = declaration.tensors().items()
                name = tensor_name(path, key)
                if isinstance(stored := weights.storage[name], Format):
                    return QuantizedStack(self.ops, list(weights.quantized(name, shape)), stored)
                return StackedHandle(self.ops, [weights.weight(name, shape)])
            case Table():
                name, shape = tensor_name(path, "weight"), (declaration.rows, declaration.width)
                if isinstance(stored := weights.storage[name], Format):
                    return QuantizedTable(weights, name, shape, stored)
                return TableHandle(self.ops, weights.weight(name, shape))
            case Vector():
                return weights.weight(path, (declaration.size,))
            case Const():
                array = declaration.make()
                if array.nbytes > 4096:
                    return weights.constant(path, array)
                return self.ops.constant(array)
            case Dropout():
                return lambda x: x
            case Sub():
                return GraphHandle(self.ops, declaration.layer, declaration.width, weights, path)
        raise TypeError(declaration)

    def _scope(self) -> str:
        """The name scope of the layer's nodes: `attention`, `layers.0`."""
        parts = self.path.split(".")
        name = ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
        return name or self.layer.kind
