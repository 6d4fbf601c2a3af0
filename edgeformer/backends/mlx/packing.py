"""Pack linear maps that share an input into one matrix: q|k|v, gate|up. One launch instead of two or three, also if quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class PackedProduct(tuple):
    """The parts of a packed product, and the product itself as `whole`, `[..., sum of parts]`."""

    whole: mx.array


class Rows:
    """A linear map formed by some rows of a packed one. Not a module: the parent owns the weights."""

    def __init__(self, parent: nn.Module, index: int, sizes: tuple[int, ...]):
        self.parent, self.index, self.sizes = parent, index, sizes

    def __call__(self, x: mx.array) -> mx.array:
        start = sum(self.sizes[: self.index])
        return self.parent(x)[..., start : start + self.sizes[self.index]]  # type: ignore[operator]


def packed_product(x: mx.array, handles: Sequence[Any]) -> PackedProduct | None:
    """The packed product if `handles` are all parts of one packed map, in order; otherwise None."""
    if not all(isinstance(h, Rows) for h in handles) or len({id(h.parent) for h in handles}) > 1:
        return None
    sizes = handles[0].sizes
    if [h.index for h in handles] != list(range(len(sizes))):
        return None
    whole, parts, start = handles[0].parent(x), [], 0
    for size in sizes:
        parts.append(whole[..., start : start + size])
        start += size
    packed = PackedProduct(parts)
    packed.whole = whole
    return packed


def pack(maps: Sequence[nn.Module]) -> tuple[nn.Module, list[Rows]] | None:
    """Pack linear maps that share an input: the packed map and its parts; None if they can't be packed (mixed bits or biases)."""
    keys = {tuple(sorted(m.parameters())) for m in maps}
    quantized = [(m.group_size, m.bits, m.mode) for m in maps if isinstance(m, nn.QuantizedLinear)]
    if (
        not all(isinstance(m, (nn.Linear, nn.QuantizedLinear)) for m in maps)
        or len(keys) > 1
        or len(set(quantized)) > 1
    ):
        return None
    joined = {k: mx.concatenate([m[k] for m in maps]) for k in maps[0].parameters()}
    if quantized:
        group_size, bits, mode = quantized[0]
        parent: nn.Module = nn.QuantizedLinear(group_size, group_size, False, group_size, bits, mode=mode)
    else:
        parent = nn.Linear(1, 1, bias=False)
    for key, value in joined.items():
        parent[key] = value
    parent.freeze()
    sizes = tuple(int(m["scales"].shape[0] if quantized else m["weight"].shape[0]) for m in maps)
    return parent, [Rows(parent, i, sizes) for i in range(len(maps))]
