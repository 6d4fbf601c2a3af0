"""Attention of a few new queries, where MLX has no fused kernel: unusual head sizes, and softcap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from edgeformer.backends.mlx.metal._kernel import FLOATS, Case, Kernel, exact, random

FUSED = {(d, d) for d in (64, 96, 128, 256)} | {(192, 128)}
"""(head_dim, value_dim) with a decode kernel in `mx.fast.scaled_dot_product_attention`; others silently fall back."""
MAX_QUERIES, MAX_DIM = 8, 256
SIMDGROUPS = 8


@dataclass(frozen=True)
class _Shape:
    """Sizes of a case, and its masks and score modifications. `blind`: every key is masked for every query."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    value_dim: int
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False
    blind: bool = False

    def _distance(self) -> np.ndarray:
        """Key − query, [queries, keys]."""
        return np.arange(self.keys)[None] - np.arange(self.keys - self.queries, self.keys)[:, None]

    def seen(self) -> np.ndarray | None:
        """Visible keys as booleans [queries, keys]; None if nothing is masked."""
        if self.blind:
            return np.zeros((self.queries, self.keys), bool)
        if self.window is not None:
            return self._distance() > -self.window
        return self._distance() <= 0 if self.causal else None

    def slopes(self) -> np.ndarray:
        """ALiBi's bias [heads, queries, keys]."""
        return 2.0 ** -np.arange(1, self.heads + 1)[:, None, None] * self._distance()

    def text(self) -> str:
        """The case's human-readable name."""
        marks = [name for name in ("causal", "window", "softcap", "alibi", "blind") if getattr(self, name)]
        sizes = f"{self.batch}x{self.queries}, {self.heads}/{self.kv_heads} heads of {self.dim}/{self.value_dim}"
        return ", ".join([sizes, f"{self.keys} keys", *(marks or ["plain"])])


class DecodeAttention(Kernel):
    """softmax(softcap(q kᵀ · scale) + bias) v with a boolean mask, an additive bias (ALiBi) and grouped heads.

    Replaces an op graph of at least four launches. Sliding windows are passed as masks; masked keys are not read.
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
            q: [B, H, T, K]; k: [B, G, S, K]; v: [B, G, S, Kv]; the last axis of each is dense.
            mask: bool [B or 1, 1, T or 1, S], False where masked, or None.
            bias: [B or 1, H or 1, T or 1, S], or None.
            scale: factor of the scores; softcap: their bound, or None.
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
        shapes = (
            _Shape(1, 9, 3, 1, 77, 40, 40),
            _Shape(1, 4, 2, 1, 130, 80, 80, window=20),
            _Shape(2, 4, 4, 1, 50, 64, 64, softcap=2.5),
            _Shape(1, 6, 2, 3, 33, 20, 20, causal=True),
            _Shape(2, 3, 1, 1, 61, 112, 112, alibi=True),
            _Shape(1, 2, 2, 2, 9, 48, 24, causal=True, softcap=2.5, alibi=True),
            _Shape(1, 2, 1, 1, 3, 16, 16, blind=True),
        )
        for n, s in enumerate(shapes):
            q = random(n, dtype, s.batch, s.heads, s.queries, s.dim)
            cache_k, cache_v = (
                random(n + seed, dtype, s.batch, 2 * s.kv_heads, s.keys + 5, d)
                for seed, d in ((9, s.dim), (19, s.value_dim))
            )
            k, v = cache_k[:, : s.kv_heads, : s.keys], cache_v[:, s.kv_heads :, : s.keys]  # strided, as in a cache
            seen = s.seen()
            mask = None if seen is None else mx.array(seen)[None, None]
            bias = None if not s.alibi else mx.array(s.slopes(), mx.float32)[None].astype(dtype)
            shape = dict(scale=s.dim**-0.5 * 3, softcap=s.softcap)
            arguments = (q, k, v, mask, bias)
            yield Case(
                s.text(),
                lambda kernel, a=arguments, o=shape: [kernel(*a, **o)],
                lambda a=arguments, o=shape: [body(*a, **o)],
                [_expected(*arguments, **shape)],
                limit=4.0,
                defined=not s.blind,
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
    """The same computation in MLX's ops; a query with all keys masked gets finite values."""
    from edgeformer.backends.mlx.ops import MlxOps

    return MlxOps().attention(q, k, v, mask, bias, groups=q.shape[1] // k.shape[1], scale=scale, softcap=softcap)


KERNEL = DecodeAttention
