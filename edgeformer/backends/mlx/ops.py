"""The op vocabulary on MLX arrays, with `mlx.core.fast` where MLX has a kernel.

Masks are booleans (or the string "causal"): an additive -1e9 is -inf in float16, and MLX's kernels skip masked keys without
reading them. MLX is lazy: tensors that a fast path doesn't use, such as cosine tables, are never computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from edgeformer.backends.mlx.packing import PackedProduct, packed_product
from edgeformer.backends.mlx.store import MlxStore
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.ops import MASKED, Bias, Heads, Rotary
from edgeformer.ops.eager import EagerOps, elementwise
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import StackedMaps

Mask = mx.array | str | None
"""Booleans, "causal", or None where every key is seen."""
Norms = tuple[LayerHandle, LayerHandle]
"""The norms of queries and keys."""


@dataclass(frozen=True)
class MlxRotary(Rotary[mx.array]):
    """RoPE angles, and the arguments that `mx.fast.rope` takes instead.

    start: int32 [B] or [1], the position of each row's first new token, if positions are consecutive; otherwise None.
    periods: float32 [dim/2], reciprocal frequencies.
    """

    start: mx.array | None
    periods: mx.array
    offsets: dict[tuple[int, int], mx.array] = field(default_factory=dict)


class _Experts(StackedMaps[mx.array], Protocol):
    """The maps of all experts: `stacked.Stacked`, or `stacked.QuantizedStacked`."""

    def chosen(self, x: mx.array, which: mx.array) -> mx.array: ...


class MlxOps(EagerOps[mx.array]):
    """The op vocabulary on MLX arrays.

    Args:
        kernels: custom kernels to use, by name; see `edgeformer.backends.mlx.metal`. None: op-level bodies only.
    """

    def __init__(self, kernels: dict[str, Any] | None = None):
        self.kernels = kernels or {}
        self._periods: dict[Any, mx.array] = {}
        self._head_weights: dict[Any, tuple[mx.array, mx.array, mx.array]] = {}

    # -------------------------------------------------------------------------------------------------- primitives

    rsqrt = elementwise(mx.rsqrt)
    exp = elementwise(mx.exp)
    sin = elementwise(mx.sin)
    cos = elementwise(mx.cos)
    tanh = elementwise(mx.tanh)
    sigmoid = elementwise(mx.sigmoid)
    erf = elementwise(mx.erf)
    act_silu = elementwise(nn.silu)
    act_gelu = elementwise(nn.gelu)
    act_gelu_tanh = elementwise(nn.gelu_approx)

    def permute(self, x, axes):
        return x.transpose(axes)

    def expand_dims(self, x, axis):
        return mx.expand_dims(x, axis)

    def concat(self, xs, axis):
        return mx.concatenate(list(xs), axis)

    def split(self, x, sizes, axis):
        return mx.split(x, np.cumsum(sizes)[:-1].tolist(), axis)

    def repeat_heads(self, x, count):
        return mx.repeat(x, count, axis=1)

    def mean(self, x):
        return x.mean(-1, keepdims=True)

    def sum(self, x, axis, *, keep=False):
        return x.sum(axis, keepdims=keep)

    def relu(self, x):
        return mx.maximum(x, 0)

    def softmax(self, x):
        return mx.softmax(x, -1, precise=True)

    def topk(self, x, count):
        ids = mx.stop_gradient(mx.argsort(-x, axis=-1)[..., :count])
        return mx.take_along_axis(x, ids, -1), ids

    def where(self, condition, a, b):
        return mx.where(condition, mx.array(a, mx.float32), mx.array(b, mx.float32))

    def clip(self, x, low, high):
        return mx.clip(x, low, high)

    def arange(self, count, like):
        return mx.arange(count)

    def cast(self, x, like):
        return x.astype(like.dtype)

    def f32(self, x):
        return x if x.dtype == mx.float64 else x.astype(mx.float32)

    # ------------------------------------------------------------------------------------------ norms, activations

    def rms_norm(self, x, weight, *, eps):
        return mx.fast.rms_norm(x, weight, eps)

    def add_rms_norm(self, x, d, weight, *, eps):
        if (kernel := self.kernels.get("add_rms_norm")) is not None and kernel.takes(x):
            return kernel(x, d, weight, eps=eps)
        total = x + d
        return total, mx.fast.rms_norm(total, weight, eps)

    def layer_norm(self, x, weight, bias, *, eps):
        return mx.fast.layer_norm(x, weight, bias, eps)

    def add_layer_norm(self, x, d, weight, bias, *, eps):
        total = x + d
        return total, mx.fast.layer_norm(total, weight, bias, eps)

    # ------------------------------------------------------------------------------------------- linear maps, FFNs

    def linears(self, x, *handles):
        product = packed_product(x, handles)
        return super().linears(x, *handles) if product is None else product

    def glu_ffn(self, x, gate, up, down, *, act):
        kernel, parent = self.kernels.get("glu_gemv"), getattr(gate, "parent", None)
        packed = parent is not None and parent is getattr(up, "parent", None)
        if packed and kernel is not None and kernel.takes(x, parent, act):
            return down(kernel(x, parent, act=act))
        g, u = self.linears(x, gate, up)
        return down(_gated(act)(g, u))

    def moe(self, x, weights, chosen, gate: _Experts, up: _Experts, down: _Experts, *, act, count):
        """Computes only the chosen experts. weights, chosen: [B, T, k]."""
        y = x[:, :, None, None, :]  # [B, T, 1, 1, D], broadcast over the chosen experts
        hidden = _gated(act)(gate.chosen(y, chosen), up.chosen(y, chosen))
        return (down.chosen(hidden, chosen).squeeze(-2) * weights[..., None]).sum(-2)

    # ---------------------------------------------------------------------------------------------------- attention

    def rotary(self, layer, step, frequencies):
        angles = super().rotary(layer, step, frequencies)
        if not layer.per_length:
            if layer not in self._periods:
                self._periods[layer] = mx.array(periods(layer.frequencies()))
            found = self._periods[layer]
        else:
            found = 1 / frequencies.reshape(-1)
        return MlxRotary(angles.cos, angles.sin, layer, getattr(step, "start", None), found)

    def mask(self, spec, queries, keys, valid, prefix=None):
        if spec.plain and valid is None and queries is keys:
            return "causal"  # a whole unpadded sequence
        # the default body builds an additive mask of 0 / MASKED; convert it to booleans
        additive = super().mask(spec, queries, keys, valid, prefix)
        return None if additive is None else additive == 0

    def additive_mask(self, mask, scores):
        seen = _bool_mask(mask, scores.shape[2], scores.shape[3])
        return None if seen is None else self.where(seen, 0.0, MASKED)

    def attention(self, q, k, v, mask, bias, *, groups, scale, softcap=None, sinks=None, dropout=None):
        dropping = dropout is not None and dropout.training and dropout.p > 0
        kernel, sizes = self.kernels.get("decode_attention"), (q.shape[2], k.shape[2])
        if kernel is not None and sinks is None and not dropping and kernel.takes(q, k, v, softcap):
            return kernel(q, k, v, _bool_mask(mask, *sizes), bias, scale=scale, softcap=softcap)
        if softcap is not None or dropping:
            seen = _bool_mask(mask, *sizes)
            added = None if seen is None else self.where(seen, 0.0, MASKED)
            return super().attention(
                q,
                k,
                v,
                added,
                bias,
                groups=groups,
                scale=scale,
                softcap=softcap,
                sinks=sinks,
                dropout=dropout if dropping else None,
            )
        if bias is not None:
            mask = _biased(bias, _bool_mask(mask, *sizes), q.dtype)
        sinks = None if sinks is None else sinks.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)

    def attend(self, slot, qkv, shape, *, norms=None, position=None, mask: Mask = None, sinks=None, dropout=None):
        rotary = position if isinstance(position, MlxRotary) else None
        magnitude = 1.0 if rotary is None else rotary.layer.magnitude()
        if rotary is not None and magnitude != 1.0 and rotary.layer.dim == shape.head_dim:
            # the magnitude scales every channel of q and k, so it becomes one factor on the scores. This must happen in every
            # step, or the cache would mix scaled and unscaled keys
            shape = replace(shape, scale=shape.scale * magnitude**2)
            position = rotary = replace(rotary, cos=rotary.cos / magnitude, sin=rotary.sin / magnitude)
            magnitude = 1.0
        if rotary is None:
            direct = not isinstance(position, Rotary)  # angles made by another RoPE implementation
        else:
            direct = rotary.start is not None and magnitude == 1.0
        if slot is None or shape.value_dim != shape.head_dim or not direct or not isinstance(slot.store, MlxStore):
            return super().attend(
                slot, qkv, shape, norms=norms, position=position, mask=mask, sinks=sinks, dropout=dropout
            )
        q, kv = self._prepared(qkv, rotary, norms, shape)
        k, v = slot.store.write(slot.path, kv)
        y = self.attention(
            q,
            k,
            v,
            mask,
            position.tensor if isinstance(position, Bias) else None,
            groups=shape.groups,
            scale=shape.scale,
            softcap=shape.softcap,
            sinks=sinks,
            dropout=dropout,
        )
        return self.merge_heads(y, shape.heads * shape.head_dim)

    def _prepared(
        self, qkv: tuple[mx.array, ...], rotary: MlxRotary | None, norms: Norms | None, shape: Heads
    ) -> tuple[mx.array, mx.array]:
        """Queries `[B, H, T, K]`, and keys and values as one array `[B, 2G, T, K]`; with QK norm and RoPE applied."""
        new, heads, kv_heads, dim = qkv[0].shape[1], shape.heads, shape.kv_heads, shape.head_dim
        plain = norms is None or type(norms[0].layer) is RMSNorm
        if isinstance(qkv, PackedProduct) and plain:
            kernel = self.kernels.get("rope_pack")
            half_split = rotary is not None and not rotary.layer.interleaved
            if rotary is not None and half_split and kernel is not None and kernel.takes(qkv.whole, dim):
                weights = None if norms is None else (norms[0].weight, norms[1].weight)
                eps = 0.0 if norms is None else norms[0].layer.eps
                sizes = dict(heads=heads, kv_heads=kv_heads, head_dim=dim, rotated=rotary.layer.dim)
                return kernel(qkv.whole, weights, rotary.start, rotary.periods, eps=eps, **sizes)
            if new == 1:
                return self._prepared_token(qkv.whole, rotary, norms, heads, kv_heads, dim)
        q, k, v = qkv
        if norms is not None:
            q, k = self.norm_heads(norms[0], q, heads, dim), self.norm_heads(norms[1], k, kv_heads, dim)
        q, k = self.split_heads(q, heads, dim), self.split_heads(k, kv_heads, dim)
        if rotary is not None:
            assert rotary.start is not None  # `attend` asked
            start = rotary.start if rotary.start.size > 1 else rotary.start.reshape(())
            q, k = _fast_rope(q, rotary, start), _fast_rope(k, rotary, start)
        return q, mx.concatenate([k, self.split_heads(v, kv_heads, dim)], 1)

    def _prepared_token(
        self, whole: mx.array, rotary: MlxRotary | None, norms: Norms | None, heads: int, kv_heads: int, dim: int
    ) -> tuple[mx.array, mx.array]:
        """`_prepared` for one token of a packed product [B, 1, (H+2G)·K], in as few launches as MLX's own ops allow."""
        batch, count = whole.shape[0], heads + 2 * kv_heads
        x = whole.reshape(batch, count, 1, dim)
        if norms is not None:
            weight, normed = self._head_weight(norms, heads, kv_heads, dim)
            y = mx.fast.rms_norm(x, None, norms[0].layer.eps) * weight.astype(x.dtype)
            x = mx.where(normed, y, x)
        if rotary is not None:
            assert rotary.start is not None  # `attend` asked
            # heads become rows; values get position 0, where RoPE is the identity
            if (offsets := rotary.offsets.get((heads, kv_heads))) is None:
                start = mx.broadcast_to(rotary.start[:, None], (batch, heads + kv_heads))
                zero = mx.zeros((batch, kv_heads), start.dtype)
                offsets = rotary.offsets[heads, kv_heads] = mx.concatenate([start, zero], 1).reshape(-1)
            x = _fast_rope(x.reshape(batch * count, 1, 1, dim), rotary, offsets).reshape(batch, count, 1, dim)
        return x[:, :heads], x[:, heads:]

    def _head_weight(self, norms: Norms, heads: int, kv_heads: int, dim: int) -> tuple[mx.array, mx.array]:
        """The norms' weights by head `[H + 2G, 1, K]`, and which heads are normalized `[H + 2G, 1, 1]`.

        Cached together with the source arrays, which are replaced when the norm is trained.
        """
        q, k = norms[0].weight, norms[1].weight
        kept = self._head_weights.get((norms[0].path, heads, kv_heads))
        if kept is None or kept[0] is not q or kept[1] is not k:
            rows = [q[None]] * heads + [k[None]] * kv_heads + [mx.ones((1, dim), q.dtype)] * kv_heads
            kept = self._head_weights[norms[0].path, heads, kv_heads] = q, k, mx.concatenate(rows)[:, None]
            mx.eval(kept[2])
        return kept[2], (mx.arange(heads + 2 * kv_heads) < heads + kv_heads)[:, None, None]


def _fast_rope(x: mx.array, rotary: MlxRotary, offset: mx.array) -> mx.array:
    return mx.fast.rope(
        x,
        rotary.layer.dim,
        traditional=rotary.layer.interleaved,
        base=None,
        scale=1.0,
        offset=offset,
        freqs=rotary.periods,
    )


def periods(frequencies: np.ndarray) -> np.ndarray:
    """float32 periods whose float32 reciprocals equal `frequencies`, or come nearest where no such number exists.

    MLX takes periods and inverts them; at position 100 000 an error of one unit in the last place is an angle of 0.006.
    """
    best = np.float32(1) / frequencies
    for candidate in (np.nextafter(best, np.float32(0)), np.nextafter(best, np.float32(np.inf))):
        nearer = np.abs(np.float32(1) / candidate - frequencies) < np.abs(np.float32(1) / best - frequencies)
        best = np.where(nearer, candidate, best)
    return best.astype(np.float32)


@cache
def _gated(act: str) -> Callable[[mx.array, mx.array], mx.array]:
    """act(g) · u as one elementwise launch."""
    ops = MlxOps()
    return mx.compile(lambda g, u: ops.activate(act, g) * u, shapeless=True)


def _bool_mask(mask: Mask, new: int, keys: int) -> mx.array | None:
    """A mask as booleans, for `new` queries and `keys` keys; "causal" is expanded to [1, 1, T, S]."""
    if not isinstance(mask, str):
        return mask
    return (mx.arange(keys)[None] <= mx.arange(keys - new, keys)[:, None])[None, None]


def _biased(bias: mx.array, mask: mx.array | None, dtype: mx.Dtype) -> mx.array:
    """Bias and boolean mask as one additive mask; masked entries are half the dtype's minimum, so that sums stay finite."""
    if mask is None:
        return bias.astype(dtype)
    return mx.where(mask, bias, mx.finfo(dtype).min / 2).astype(dtype)
