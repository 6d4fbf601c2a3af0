"""Parameter declarations as parts of a Core AI graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeformer.exporters.coreai.constants import Constants
from edgeformer.exporters.coreai.graph_ops import CoreAiOps
from edgeformer.exporters.coreai.package import c
from edgeformer.exporters.coreai.values import CoreTensor, tensor
from edgeformer.ops.handle import LayerHandle
from edgeformer.spec import Const, Dropout, Layer, Linear, Stacked, Sub, Table, Vector, tensor_name


class MatrixHandle:
    """A linear map `x @ weight.T + bias`, or one per entry of axis 1 (`each`)."""

    def __init__(self, constants: Constants, weight: str, bias: str | None = None):
        self.constants, self.weight, self.bias = constants, weight, bias

    def __call__(self, x: CoreTensor) -> CoreTensor:
        y = x @ self.constants.transposed(self.weight)
        return y if self.bias is None else y + self.constants.weight(self.bias)

    def each(self, x: CoreTensor) -> CoreTensor:
        """[B, n or 1, T, inputs] -> [B, n, T, outputs]."""
        return x @ self.constants.transposed(self.weight)


class TableHandle:
    """Looks up rows by id; `as_linear` multiplies by the transposed table (a tied head)."""

    def __init__(self, ops: CoreAiOps, constants: Constants, weight: str):
        self.ops, self.constants, self.weight = ops, constants, weight

    def __call__(self, ids: CoreTensor) -> CoreTensor:
        return self.ops.take(self.constants.weight(self.weight), ids)

    def as_linear(self, x: CoreTensor) -> CoreTensor:
        """[..., width] -> [..., rows]."""
        return x @ self.constants.transposed(self.weight)


class CoreAiHandle(LayerHandle):
    """A layer with its parameters in the graph."""

    def __init__(self, ops: CoreAiOps, layer: Layer, width: int, constants: Constants, path: str = ""):
        self.ops, self.layer, self.path, self.constants = ops, layer, path, constants
        self.hold(width, self._make)

    def _make(self, declaration: Any, path: str) -> Any:
        weight = tensor_name(path, "weight")
        match declaration:
            case Linear():
                return MatrixHandle(self.constants, weight, tensor_name(path, "bias") if declaration.bias else None)
            case Stacked():
                return MatrixHandle(self.constants, weight)
            case Table():
                return TableHandle(self.ops, self.constants, weight)
            case Vector():
                return self.constants.weight(path)
            case Const():
                array = np.asarray(declaration.make())
                kind = np.float32 if array.dtype.kind == "f" else np.int32
                return tensor(c().constant(array.astype(kind)))
            case Dropout():
                return lambda x: x
            case Sub():
                return CoreAiHandle(self.ops, declaration.layer, declaration.width, self.constants, path)
        raise TypeError(declaration)
