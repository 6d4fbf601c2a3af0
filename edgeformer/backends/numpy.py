"""The reference back end: NumPy, readable, slow. It computes in float32, or in float64 if requested.

It is the oracle where torch is not installed, and the shortest complete example of a back end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgeformer.ops.eager import EagerOps
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import GrowingStore, begin
from edgeformer.spec import Const, Declaration, Dropout, Layer, Linear, Model, Stacked, Sub, Table, Vector, tensor_name
from edgeformer.spec.task import Task

_erf = np.vectorize(math.erf, otypes=[np.float64])


class NumpyOps(EagerOps[np.ndarray]):
    """The op vocabulary on NumPy arrays."""

    def exp(self, x):
        return np.exp(x)

    def sin(self, x):
        return np.sin(x)

    def cos(self, x):
        return np.cos(x)

    def tanh(self, x):
        return np.tanh(x)

    def permute(self, x, axes):
        return x.transpose(axes)

    def expand_dims(self, x, axis):
        return np.expand_dims(x, axis)

    def concat(self, xs, axis):
        return np.concatenate(xs, axis)

    def split(self, x, sizes, axis):
        return np.split(x, np.cumsum(sizes)[:-1], axis)

    def repeat_heads(self, x, count):
        return np.repeat(x, count, axis=1)

    def mean(self, x):
        return x.mean(-1, keepdims=True)

    def sum(self, x, axis, *, keep=False):
        return x.sum(axis, keepdims=keep)

    def rsqrt(self, x):
        return 1 / np.sqrt(x)

    def sigmoid(self, x):
        return 0.5 * (np.tanh(0.5 * x) + 1)  # no overflow for large |x|

    def erf(self, x):
        return _erf(x).astype(x.dtype)

    def relu(self, x):
        return np.maximum(x, 0)

    def softmax(self, x):
        y = np.exp(x - x.max(-1, keepdims=True))
        return y / y.sum(-1, keepdims=True)

    def topk(self, x, count):
        ids = np.argsort(-x, axis=-1, kind="stable")[..., :count]
        return np.take_along_axis(x, ids, -1), ids

    def where(self, condition, a, b):
        return np.where(condition, np.float32(a), np.float32(b))

    def clip(self, x, low, high):
        return np.clip(x, low, high)

    def arange(self, count, like):
        return np.arange(count)

    def cast(self, x, like):
        return x.astype(like.dtype, copy=False)

    def f32(self, x):
        return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


class LinearHandle:
    """`x @ weight.T + bias`."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None):
        self.weight, self.bias = weight, bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class StackedHandle:
    """One linear map per entry of axis 1."""

    def __init__(self, weight: np.ndarray):
        self.weight = weight

    def each(self, x: np.ndarray) -> np.ndarray:
        """[B, n or 1, T, inputs] -> [B, n, T, outputs]."""
        return x @ self.weight.transpose(0, 2, 1)


class TableHandle:
    """Looks up rows by id; `as_linear` multiplies by the transposed table (a tied head)."""

    def __init__(self, weight: np.ndarray):
        self.weight = weight

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self.weight[ids]

    def as_linear(self, x: np.ndarray) -> np.ndarray:
        """[..., width] -> [..., rows]."""
        return x @ self.weight.T


class Handle(LayerHandle):
    """A layer with its parameters. `weights(name)` returns a tensor by its canonical name."""

    def __init__(self, ops: NumpyOps, layer: Layer, width: int, weights: Callable[[str], np.ndarray], path: str = ""):
        self.ops, self.layer, self.path = ops, layer, path
        self.hold(width, lambda declaration, place: self._make(declaration, place, weights))

    def _make(self, declaration: Declaration, path: str, weights: Callable[[str], np.ndarray]) -> object:
        match declaration:
            case Linear():
                bias = weights(tensor_name(path, "bias")) if declaration.bias else None
                return LinearHandle(weights(tensor_name(path, "weight")), bias)
            case Stacked():
                return StackedHandle(weights(tensor_name(path, "weight")))
            case Table():
                return TableHandle(weights(tensor_name(path, "weight")))
            case Vector():
                return weights(path)
            case Const():
                return declaration.make()
            case Dropout():
                return lambda x: x
            case Sub():
                return Handle(self.ops, declaration.layer, declaration.width, weights, path)
        raise TypeError(declaration)


class NumpyModel:
    """A spec with weights, run by NumPy.

    Args:
        spec: the model.
        weights: canonical name -> array (bf16 and fp16 are widened).
        dtype: float32, or float64 for an oracle.
    """

    def __init__(self, spec: Model, weights: Mapping[str, np.ndarray], dtype: npt.DTypeLike = np.float32):
        self.spec, self.ops = spec, NumpyOps()
        self.root = Handle(self.ops, spec, 0, lambda name: np.asarray(weights[name]).astype(dtype))

    def __call__(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        position_ids: np.ndarray | None = None,
        token_type_ids: np.ndarray | None = None,
        past: Mapping[tuple[str, str], np.ndarray] | None = None,
        keep: int = 0,
        prefix_length: np.ndarray | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], np.ndarray]]:
        """The model's outputs, and the KV cache after this step (pass it as the next step's `past`).

        input_ids: int64 [B, T]; attention_mask: [B, S] over past and new tokens; keep: logits of the last `keep` positions only;
        0 for all.
        """
        past = dict(past or {})
        length = next((x.shape[2] for x in past.values()), 0) + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = np.ones((input_ids.shape[0], length), np.int64)
        if token_type_ids is None:
            token_type_ids = np.zeros_like(input_ids)
        store = GrowingStore(self.ops, past)
        step = begin(
            self.ops,
            attention_mask,
            position_ids,
            new=input_ids.shape[1],
            slots=self.spec.counts_padding,
            store=store if self.spec.task == Task.TEXT_GENERATION else None,
            keep=keep,
            prefix=prefix_length,
        )
        inputs = dict(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self.root(inputs, step), store.present


__all__: Sequence[str] = ("NumpyModel", "NumpyOps")
