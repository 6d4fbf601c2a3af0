"""Attention as instructions: heads, caches, rotations and biases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeformer.backends.native.program import CacheShape, Constant, Op, Part, Rotation
from edgeformer.backends.native.recorder import Recorder
from edgeformer.backends.native.values import CachedValue, NotCovered, Value, Vector
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.mask import Mask
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rope import Rope
from edgeformer.ops.fused import Bias, Rotary
from edgeformer.spec import Model, tensor_name


@dataclass(frozen=True)
class AlibiBias(Bias[Value]):
    """A bias that the attention kernel computes from its layer's slopes."""

    layer: Alibi


@dataclass(frozen=True)
class DistanceBias(Bias[Value]):
    """A bias per head and distance key − query, clipped to ±`furthest`: [heads, 2 · furthest + 1]."""

    constant: Constant
    furthest: int


class AttentionOps(Recorder):
    """The part of the vocabulary that sees heads."""

    def __init__(self, spec: Model, capacity: int):
        super().__init__(spec, capacity)
        self._rotations: dict[Rope, Constant] = {}
        self._distances: dict[tuple[RelativeBias, str], Constant] = {}
        self._held: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}  # by cache: parts of its keys, and values

    def mask(self, spec, queries, keys, valid, prefix=None):
        return spec

    def attend(
        self, slot, qkv, shape, *, norms=None, position=None, mask=None, sinks: Vector | None = None, dropout=None
    ):
        q, k, v = qkv
        if (slot is None) is self.remembers or not isinstance(mask, Mask):
            raise NotCovered(f"the native back end attends to a cache only, unlike {self.place}")
        if norms is not None:
            q = self.norm_heads(norms[0], q, shape.heads, shape.head_dim)
            k = self.norm_heads(norms[1], k, shape.kv_heads, shape.head_dim)
        turn: dict[str, Any] = {}
        if isinstance(position, Rotary):
            assert isinstance(position.layer, Rope)
            turn = self._turned_by(position.layer)
        path = "" if slot is None else slot.path
        cache = self._cache(CacheShape(path, shape.kv_heads, shape.head_dim, shape.value_dim))
        sizes = {"count": shape.heads, "heads": shape.kv_heads, "dim": shape.head_dim, "value_dim": shape.value_dim}
        self.record(Op.APPEND, None, q, other=k, total=v, cache=cache, **sizes, **turn)
        y = self.like(q, shape.heads * shape.value_dim)
        self.record(
            Op.ATTEND, y, q, cache=cache, **sizes, scale=shape.scale, softcap=shape.softcap or 0.0, causal=int(mask.causal),
            window=mask.window or 0, chunk=mask.chunk or 0, prefix=int(mask.prefix),
            **_biases(position), sinks=None if sinks is None else sinks.constant,
        )  # fmt: skip
        if turn:
            self._changed += [q, k]
        return y

    def split_heads(self, x, heads, dim):
        return self.reshape(x, (0, -1, heads, dim))

    def merge_heads(self, x, width):
        return self.reshape(x, (0, -1, width))

    def turn(self, x, position, head_dim):
        """Noted, and done where the heads are cached or used."""
        layer = position.layer
        assert isinstance(layer, Rope)
        return replace(x, turned=layer)

    def cached(self, path: str, tensors: dict[str, Value]) -> tuple[CachedValue, ...]:
        """Put what a layer remembers into a cache of its own, keys rotated if that is still to be done."""
        match tensors:
            case {"k": k, "v": v} if len(tensors) == 2:
                parts = ("k",), ("v",)
            case {"latent": v, "rope": rope} if len(tensors) == 2:  # keys are latents beside rotated channels
                k, parts = self._side_by_side([v, rope]), (("latent", "rope"), ("latent",))
            case _:
                raise NotCovered(f"{path} caches {' and '.join(tensors)}, which the native back end doesn't cover")
        turn = {} if k.turned is None else self._turned_by(k.turned)
        shape = CacheShape(path, k.heads, k.width // k.heads, v.width // v.heads, parts[0] != ("k",))
        cache = self._cache(shape)
        sizes = {"count": 0, "heads": shape.heads, "dim": shape.dim, "value_dim": shape.value_dim}
        self.record(Op.APPEND, None, None, other=k, total=v, cache=cache, **sizes, **turn)
        if turn:
            self._changed.append(k)
        self._held[cache] = parts
        return tuple(CachedValue(cache, (name,)) for name in tensors)

    def attention(
        self, q, k: CachedValue, v: CachedValue, mask, bias, *, groups, scale, softcap=None, sinks: Vector | None = None,
        dropout=None,
    ):  # fmt: skip
        """Attention to what a layer has put into its cache, with queries that are rotated first."""
        cached = isinstance(k, CachedValue) and isinstance(v, CachedValue) and k.cache == v.cache
        if not cached or self._held[k.cache] != (k.parts, v.parts) or not isinstance(mask, Mask):
            raise NotCovered(f"the native back end attends to a cache only, unlike {self.place}")
        if q.turned is not None:
            y = replace(self.like(q), heads=q.heads)
            self._put_heads(q, y)
            q = y
        if bias is not None:
            raise NotCovered(f"the native back end takes position biases in `attend` only, unlike {self.place}")
        shape = self.program.caches[k.cache]
        y = self.like(q, q.heads * shape.value_dim)
        self.record(
            Op.ATTEND, y, q, cache=k.cache, count=q.heads, heads=shape.heads, dim=shape.dim, value_dim=shape.value_dim,
            scale=scale, softcap=softcap or 0.0, causal=int(mask.causal), window=mask.window or 0, chunk=mask.chunk or 0,
            prefix=int(mask.prefix), sinks=None if sinks is None else sinks.constant,
        )  # fmt: skip
        return replace(y, heads=q.heads)

    def _cache(self, shape: CacheShape) -> int:
        """The number of a layer's cache; layers that remember nothing share one."""
        if shape.path or shape not in self.program.caches:
            self.program.caches.append(shape)
            return len(self.program.caches) - 1
        return self.program.caches.index(shape)

    def _distance_bias(self, layer: RelativeBias, path: str) -> DistanceBias:
        key = layer, path
        if key not in self._distances:
            buckets = layer.lookup()

            def make(table: np.ndarray) -> np.ndarray:
                return np.ascontiguousarray(table.reshape(layer.buckets, layer.heads)[buckets].T).reshape(-1)

            self._distances[key] = Constant((tensor_name(f"{path}.table", "weight"),), make)
        return DistanceBias(self.nothing, self._distances[key], layer.furthest)

    def expand_dims(self, x, axis):
        """[B, T, width] as one head, [B, 1, T, width]: the same columns."""
        if not isinstance(x, Value) or x.heads != 1 or axis != 1:
            raise NotCovered(f"the native back end has no instruction for `expand_dims`, which {self.place} uses")
        return x

    def concat(self, xs: Sequence[Any], axis):
        """Channels of heads, side by side: of values, or of what is in a cache."""
        if all(isinstance(x, CachedValue) and x.cache == xs[0].cache for x in xs):
            return CachedValue(xs[0].cache, tuple(name for x in xs for name in x.parts))
        if axis != -1 or not all(isinstance(x, Value) and x.heads == xs[0].heads for x in xs):
            raise NotCovered(f"the native back end joins channels of heads only, unlike {self.place}")
        return self._side_by_side(list(xs))

    def _side_by_side(self, xs: list[Value]) -> Value:
        """What is still to be rotated is rotated on the way."""
        heads, widths = xs[0].heads, [x.width // x.heads for x in xs]
        y, at = replace(self.like(xs[0], heads * sum(widths)), heads=heads), 0
        for x, width in zip(xs, widths, strict=True):
            self._put_heads(x, replace(y, at=at, width=heads * width, step=sum(widths)))
            at += width
        return y

    def _put_heads(self, x: Value, y: Value) -> None:
        """Copy heads into a buffer, rotated if that is still to be done."""
        turn = {} if x.turned is None else self._turned_by(x.turned)
        sizes = {"count": x.heads, "dim": x.width // x.heads, "src_step": x.head_step, "dst_step": y.head_step}
        self.record(Op.HEADS, y, x, **sizes, **turn)

    def _turned_by(self, layer: Rope) -> dict[str, Any]:
        """The fields of an instruction that rotates."""
        return {"table": self._angles(layer), "rotated": layer.dim, "interleaved": int(layer.interleaved)}

    def maps(self, part: Part, count: int, x: Value) -> Value:
        """A map per head: [B, count, T, inputs] -> [B, count, T, outputs]."""
        if x.heads != count or x.width != count * part.inputs:
            raise NotCovered(f"the native back end applies one map to each head, unlike {self.place}")
        y = replace(self.like(x, count * part.outputs), heads=count)
        sizes = {"heads": count, "src_step": x.head_step, "dst_step": y.head_step}
        self.record(Op.MAPS, y, x, parts=(part,), **sizes)
        return y

    def _angles(self, layer: Rope) -> Constant:
        """cos and sin of each position, side by side: [capacity, rotated]. One constant per scheme: its layers share it."""
        if layer not in self._rotations:
            capacity = self.capacity

            def make() -> np.ndarray:
                table = layer.table(capacity)
                return np.zeros((capacity, layer.dim), np.float32) if table is None else np.concatenate(table, 1)

            self._rotations[layer] = Constant((), make)
            self.program.rotations.append(Rotation(layer, self._rotations[layer]))
        return self._rotations[layer]


def _biases(position: Rotary | Bias | None) -> dict[str, Any]:
    """The fields of an attention's biases by position."""
    if isinstance(position, AlibiBias):
        return {"slopes": Constant((), position.layer.slopes)}
    if isinstance(position, DistanceBias):
        return {"slopes": position.constant, "furthest": position.furthest}
    if isinstance(position, Bias):
        raise NotCovered("the native back end knows biases by distance only")
    return {}
