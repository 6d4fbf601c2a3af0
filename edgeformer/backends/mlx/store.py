"""The cache: one array of fixed capacity per layer, keys and values in it one after the other, written once per step.

MLX arrays are values. A write makes a new array; MLX reuses the old one's memory when nobody else holds it, so whoever steps
must let go of the old arrays (`MlxStore` does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from edgeformer.errors import InputError
from edgeformer.spec import Model, layers

Key = tuple[str, tuple[int, int]]
"""A layer's path, and (heads, dim) of the tensors that lie together."""


def layout(spec: Model) -> dict[str, dict[str, tuple[int, int]]]:
    """Layer path -> name -> (heads, dim) of what the layer remembers per token."""
    return {path: cache for path, layer, _ in layers(spec) if (cache := layer.cache())}


class MlxStore:
    """What a decoder remembers: arrays `[n, B, heads, capacity, dim]`, the n tensors of one shape that a layer has.

    The tensors come first so that each is dense but for its capacity: MLX's attention takes such slices without a copy.
    `start` is the column of the next step's first token (an int, or an int32 array in a compiled step), `visible` how many
    columns layers see, or None for those that are filled when `start` is an int.
    """

    def __init__(self, spec: Model, batch: int, capacity: int, dtype: mx.Dtype):
        self.start: Any = 0
        self.visible: int | None = None
        self.arrays: dict[Key, mx.array] = {}
        for path, names in layout(spec).items():
            shapes = list(names.values())
            for heads, dim in dict.fromkeys(shapes):
                count = shapes.count((heads, dim))
                self.arrays[path, (heads, dim)] = mx.zeros((count, batch, heads, capacity, dim), dtype)

    @classmethod
    def over(cls, arrays: dict[Key, mx.array], start: mx.array, visible: int) -> MlxStore:
        """A store of arrays that there are: the inputs of a compiled step."""
        store = cls.__new__(cls)
        store.arrays, store.start, store.visible = arrays, start, visible
        return store

    def length(self) -> int:
        """Tokens remembered before this step."""
        return self.start

    def append(self, path: str, tensors: dict[str, mx.array]) -> tuple[mx.array, ...]:
        """Write new tokens' tensors `[B, heads, T, dim]`; the full ones, in the same order."""
        full: dict[str, mx.array] = {}
        for shape in dict.fromkeys((x.shape[1], x.shape[3]) for x in tensors.values()):
            names = [n for n, x in tensors.items() if (x.shape[1], x.shape[3]) == shape]
            whole = self._write(path, mx.stack([tensors[n] for n in names]))
            full |= dict(zip(names, _each(whole), strict=True))
        return tuple(full[name] for name in tensors)

    def write(self, path: str, kv: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values that lie side by side, `[B, 2G, T, K]`; the full keys and values."""
        batch, heads, new, dim = kv.shape
        whole = self._write(path, kv.reshape(batch, 2, heads // 2, new, dim).swapaxes(0, 1))
        k, v = _each(whole)
        return k, v

    def _write(self, path: str, new: mx.array) -> mx.array:
        return self._put((path, (new.shape[2], new.shape[4])), new)

    def _put(self, key: Any, new: mx.array) -> mx.array:
        """Write along the axis of tokens; the visible part."""
        old, count = self.arrays[key], new.shape[3]
        if isinstance(self.start, int):
            at = mx.array([self.start])
            if self.start + count > old.shape[3]:
                raise IndexError(f"{self.start} + {count} tokens in a cache of {old.shape[3]}")
        else:
            at = self.start.reshape(1)
        self.arrays[key] = mx.slice_update(old, new.astype(old.dtype), at, axes=(3,))
        end = self.visible if self.visible is not None else self.start + count
        return self.arrays[key][:, :, :, :end]

    def once(self, path: str, make: Callable) -> dict[str, Any]:
        """Encoder–decoder models are not run through this store."""
        raise NotImplementedError


class Int8Store(MlxStore):
    """The same in 8 bits: each token's channels in groups with a scale and an offset of their own (MLX's affine mode).

    It halves the memory of an fp16 cache. Attention is given the dequantized part that it sees, so it saves no time.
    """

    def __init__(self, spec: Model, batch: int, capacity: int, dtype: mx.Dtype):
        super().__init__(spec, batch, 1, dtype)
        plain, self.arrays = self.arrays, {}
        for key, x in plain.items():
            count, batch, heads, _, dim = x.shape
            if dim % INT8_GROUP:
                raise InputError(
                    f"an int8 cache has groups of {INT8_GROUP} channels, and the heads of {key[0]} have {dim}"
                )
            sizes = {"codes": (dim // 4, mx.uint32), **dict.fromkeys(("scales", "biases"), (dim // INT8_GROUP, dtype))}
            for part, (size, kind) in sizes.items():
                self.arrays[*key, part] = mx.zeros((count, batch, heads, capacity, size), kind)  # type: ignore[index]

    def _write(self, path: str, new: mx.array) -> mx.array:
        key = path, (new.shape[2], new.shape[4])
        parts = zip(("codes", "scales", "biases"), mx.quantize(new, INT8_GROUP, 8), strict=True)
        seen = [self._put((*key, part), x) for part, x in parts]
        return mx.dequantize(*seen, group_size=INT8_GROUP, bits=8)


INT8_GROUP = 32


def _each(whole: mx.array) -> list[mx.array]:
    """The entries of axis 0 as views; indexing by a number would gather, which is a launch and a copy."""
    return [whole[i : i + 1].squeeze(0) for i in range(whole.shape[0])]
