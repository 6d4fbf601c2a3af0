"""The KV cache: one array of fixed capacity per layer, with keys and values stacked in it, written once per step.

MLX arrays are immutable. A write makes a new array; MLX reuses the old one's memory if there are no other references to it, so
the caller of a step must drop the old arrays (`MlxStore` does).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from edgeformer.errors import InputError
from edgeformer.spec import Model, layers

Key = tuple[str, tuple[int, int]] | tuple[str, tuple[int, int], str]
"""A layer's path, (heads, dim) of the tensors stacked in one array, and in `Int8Store` the name of the array."""


def layout(spec: Model) -> dict[str, dict[str, tuple[int, int]]]:
    """Layer path -> name -> (heads, dim) of the layer's cached tensors per token."""
    return {path: cache for path, layer, _ in layers(spec) if (cache := layer.cache())}


class MlxStore:
    """A decoder's KV cache: arrays `[n, B, heads, capacity, dim]`, each stacking a layer's n tensors of one shape.

    The tensor axis comes first so that each tensor is dense except for its unused capacity: MLX's attention takes such slices
    without a copy. `start` is the column of the next step's first token (an int, or an int32 array in a compiled step), `visible`
    the number of columns that layers see; None means the filled ones (only if `start` is an int).
    """

    def __init__(self, spec: Model, batch: int, capacity: int, dtype: mx.Dtype):
        self.start: int | mx.array = 0
        self.visible: int | None = None
        self.arrays: dict[Key, mx.array] = {}
        for path, names in layout(spec).items():
            shapes = list(names.values())
            for heads, dim in dict.fromkeys(shapes):
                count = shapes.count((heads, dim))
                self.arrays[path, (heads, dim)] = mx.zeros((count, batch, heads, capacity, dim), dtype)

    @classmethod
    def over(cls, arrays: dict[Key, mx.array], start: mx.array, visible: int) -> MlxStore:
        """Wrap existing arrays, the inputs of a compiled step, in a store."""
        store = cls.__new__(cls)
        store.arrays, store.start, store.visible = arrays, start, visible
        return store

    def length(self) -> int | mx.array:
        """Tokens in the cache before this step."""
        return self.start

    def append(self, path: str, tensors: dict[str, mx.array]) -> tuple[mx.array, ...]:
        """Write new tokens' tensors `[B, heads, T, dim]`; returns the full tensors, in the same order."""
        full: dict[str, mx.array] = {}
        for shape in dict.fromkeys((x.shape[1], x.shape[3]) for x in tensors.values()):
            names = [n for n, x in tensors.items() if (x.shape[1], x.shape[3]) == shape]
            whole = self._write(path, mx.stack([tensors[n] for n in names]))
            full |= dict(zip(names, _each(whole), strict=True))
        return tuple(full[name] for name in tensors)

    def write(self, path: str, kv: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values packed along the head axis, `[B, 2G, T, K]`; returns the full keys and values."""
        batch, heads, new, dim = kv.shape
        whole = self._write(path, kv.reshape(batch, 2, heads // 2, new, dim).swapaxes(0, 1))
        k, v = _each(whole)
        return k, v

    def _write(self, path: str, new: mx.array) -> mx.array:
        return self._put((path, (new.shape[2], new.shape[4])), new)

    def _put(self, key: Key, new: mx.array) -> mx.array:
        """Write along the token axis; returns the visible part."""
        old, count = self.arrays[key], new.shape[3]
        if isinstance(self.start, int):
            at = mx.array([self.start])
            if self.start + count > old.shape[3]:
                raise IndexError(f"{self.start} + {count} tokens do not fit: the cache holds {old.shape[3]}")
        else:
            at = self.start.reshape(1)
        self.arrays[key] = mx.slice_update(old, new.astype(old.dtype), at, axes=(3,))
        end = self.visible if self.visible is not None else self.start + count
        return self.arrays[key][:, :, :, :end]

    def once(self, path: str, make: Callable[[], dict[str, mx.array]]) -> dict[str, mx.array]:
        """Not implemented: this store doesn't support encoder–decoder models."""
        raise NotImplementedError


class Int8Store(MlxStore):
    """`MlxStore` in 8 bits: each token's channels in groups with their own scale and bias (MLX's affine mode).

    It halves the memory of an fp16 cache. Attention gets the visible part dequantized, so it saves no time.
    """

    def __init__(self, spec: Model, batch: int, capacity: int, dtype: mx.Dtype):
        super().__init__(spec, batch, 1, dtype)
        plain, self.arrays = self.arrays, {}
        for (path, shape, *_), x in plain.items():
            count, batch, heads, _, dim = x.shape
            if dim % INT8_GROUP:
                raise InputError(
                    f"an int8 KV cache needs a head size divisible by {INT8_GROUP}, and the heads of {path} have {dim} channels"
                )
            sizes = {"codes": (dim // 4, mx.uint32), **dict.fromkeys(("scales", "biases"), (dim // INT8_GROUP, dtype))}
            for part, (size, kind) in sizes.items():
                self.arrays[path, shape, part] = mx.zeros((count, batch, heads, capacity, size), kind)

    def _write(self, path: str, new: mx.array) -> mx.array:
        key = path, (new.shape[2], new.shape[4])
        parts = zip(("codes", "scales", "biases"), mx.quantize(new, INT8_GROUP, 8), strict=True)
        seen = [self._put((*key, part), x) for part, x in parts]
        return mx.dequantize(*seen, group_size=INT8_GROUP, bits=8)


INT8_GROUP = 32


def _each(whole: mx.array) -> list[mx.array]:
    """The entries of axis 0 as views; integer indexing would gather, which costs a launch and a copy."""
    return [whole[i : i + 1].squeeze(0) for i in range(whole.shape[0])]
