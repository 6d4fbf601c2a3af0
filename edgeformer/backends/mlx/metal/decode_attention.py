"""Attention of a few new queries, for what MLX has no fused kernel: odd head sizes, and capped scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from edgeformer.backends.mlx.metal._kernel import FLOATS, Case, Kernel, exact, random

FUSED = {(d, d) for d in (64, 96, 128, 256)} | {(192, 128)}
"""(head_dim, value_dim) that `mx.fast.scaled_dot_product_attention` has a decode kernel for; it falls back silently."""
MAX_QUERIES, MAX_DIM = 8, 256
SIMDGROUPS = 8


class DecodeAttention(Kernel):
    """softmax(softcap(q kᵀ · scale) + bias) v with a boolean mask, an additive bias (ALiBi) and grouped heads.

    Stands in for an op graph of four launches or more. Sliding windows come as masks; hidden keys are not read.
    """

    name = "decode_attention"
    inputs = ("q", "k", "v", "mask", "bias", "scale", "cap")
    outputs = ("y",)
    row_contiguous = False  # keys and values are slices of the cache, and must not be copied

    def takes(self, q: mx.array, k: mx.array, v: mx.array, softcap: float | None) -> bool:
        dims = q.shape[3], v.shape[3]
        if q.shape[2] > MAX_QUERIES or max(dims) > MAX_DIM or q.dtype not in FLOATS:
            return False
        return softcap is not None or dims not in FUSED

    def __call__(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        mask: mx.array | None,
        bias: mx.array | None,
        *,
        scale: float,
        softcap: float | None,
    ) -> mx.array:
        """[B, H, T, Kv] in q's dtype.

        Args:
            q: [B, H, T, K]; k: [B, G, S, K]; v: [B, G, S, Kv]; the last axis of each dense.
            mask: bool [B or 1, 1, T or 1, S], false where hidden, or None.
            bias: [B or 1, H or 1, T or 1, S], or None.
            scale: on the scores; softcap: their bound, or None.
        """
        batch, heads, new, dim = q.shape
        none = mx.zeros((1, 1, 1, 8))
        return self.launch(
            inputs=[
                q, k, v, none.astype(mx.bool_) if mask is None else mask, none if bias is None else bias,
                float(scale), float(softcap or 0.0),
            ],
            template=[
                ("T", q.dtype), ("DIM", dim), ("VALUE_DIM", v.shape[3]), ("HEADS", heads), ("GROUPS", heads // k.shape[1]),
                ("SIMDGROUPS", SIMDGROUPS), ("MASKED", mask is not None), ("BIASED", bias is not None),
                ("CAPPED", softcap is not None),
            ],
            grid=(32 * SIMDGROUPS * heads, new, batch),
            threadgroup=(32 * SIMDGROUPS, 1, 1),
            output_shapes=[(batch, heads, new, v.shape[3])],
            output_dtypes=[q.dtype],
        )[0]  # fmt: skip

    def cases(self, dtype: mx.Dtype) -> Iterator[Case]:
        shapes = (  # batch, heads, kv_heads, queries, keys, dim, value_dim, what
            (1, 9, 3, 1, 77, 40, 40, "plain"),
            (1, 4, 2, 1, 130, 80, 80, "window"),
            (2, 4, 4, 1, 50, 64, 64, "softcap"),
            (1, 6, 2, 3, 33, 20, 20, "causal"),
            (2, 3, 1, 1, 61, 112, 112, "alibi"),
            (1, 2, 2, 2, 9, 48, 24, "softcap, causal, bias"),
            (1, 2, 1, 1, 3, 16, 16, "nothing to see"),
        )
        for n, (batch, heads, kv_heads, new, keys, dim, value_dim, what) in enumerate(shapes):
            q = random(n, dtype, batch, heads, new, dim)
            cache_k, cache_v = (
                random(n + s, dtype, batch, 2 * kv_heads, keys + 5, d) for s, d in ((9, dim), (19, value_dim))
            )
            k, v = cache_k[:, :kv_heads, :keys], cache_v[:, kv_heads:, :keys]  # strided, as in a cache
            at: np.ndarray = np.arange(keys - new, keys)[:, None]
            seen: Any = None
            if "causal" in what:
                seen = np.arange(keys)[None] <= at
            elif what == "window":
                seen = np.arange(keys)[None] > at - 20
            elif what == "nothing to see":
                seen = np.zeros((new, keys), bool)
            bias = None
            if "bias" in what or what == "alibi":
                slopes = 2.0 ** -np.arange(1, heads + 1)
                bias = mx.array(slopes[:, None, None] * (np.arange(keys)[None] - at), mx.float32)[None].astype(dtype)
            mask = None if seen is None else mx.array(seen)[None, None]
            shape = dict(scale=dim**-0.5 * 3, softcap=2.5 if "softcap" in what else None)
            arguments = (q, k, v, mask, bias)
            yield Case(
                f"{batch}x{new}, {heads}/{kv_heads} heads of {dim}/{value_dim}, {keys} keys, {what}",
                lambda kernel, a=arguments, s=shape: [kernel(*a, **s)],
                lambda a=arguments, s=shape: [body(*a, **s)],
                [_expected(*arguments, **shape)],
                limit=4.0,
            )


def _expected(q, k, v, mask, bias, *, scale, softcap):
    groups = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(exact(x), groups, 1) for x in (k, v))
    scores = exact(q) @ keys.swapaxes(-1, -2) * scale
    if softcap is not None:
        scores = np.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + exact(bias)
    seen = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(np.array(mask), scores.shape)
    top = np.where(seen, scores, -np.inf).max(-1, keepdims=True)
    p = np.where(seen, np.exp(np.minimum(scores - np.where(np.isfinite(top), top, 0.0), 0.0)), 0.0)
    return p / np.maximum(p.sum(-1, keepdims=True), 1e-300) @ values


def body(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    mask: mx.array | None,
    bias: mx.array | None,
    *,
    scale: float,
    softcap: float | None,
) -> mx.array:
    """The same in MLX's ops; a query that sees no key gets something finite."""
    from edgeformer.backends.mlx.ops import MlxOps

    return MlxOps().attention(q, k, v, mask, bias, groups=q.shape[1] // k.shape[1], scale=scale, softcap=softcap)


KERNEL = DecodeAttention
