"""QK norm, RoPE and packing of a q|k|v product in one kernel launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from edgeformer.backends.mlx.metal._kernel import FLOATS, Case, Kernel, exact, random


class RopePack(Kernel):
    """RMSNorm of each query and key head (optional), RoPE, and packing of keys and values into one array.

    Saves up to six launches: two norms, two rotations, one of two cache writes, and the concatenation.
    """

    name = "rope_pack"
    inputs = ("packed", "q_weight", "k_weight", "eps", "start", "periods")
    outputs = ("q", "kv")

    def takes(self, whole: mx.array, head_dim: int) -> bool:
        return whole.dtype in FLOATS and head_dim <= 1024

    def __call__(
        self,
        whole: mx.array,
        weights: tuple[mx.array, mx.array] | None,
        start: mx.array,
        periods: mx.array,
        *,
        eps: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rotated: int,
    ) -> tuple[mx.array, mx.array]:
        """Queries [B, H, T, K], and keys and values [B, 2G, T, K].

        Args:
            whole: [B, T, (H+2G)·K].
            weights: the norms' [K] for queries and for keys, or None.
            start: int32 [B] or [1], the position of each row's first token.
            periods: float32 [rotated/2], reciprocal frequencies.
            eps: the norms' epsilon.
            heads, kv_heads, head_dim, rotated: sizes; rotated: channels per head with RoPE.
        """
        batch, new = whole.shape[:2]
        count = heads + 2 * kv_heads
        # without norms the weights are not read; 8 elements keep them in the device address space
        q_weight, k_weight = (w.astype(whole.dtype) for w in (weights or [mx.zeros(8)] * 2))
        q, kv = self.launch(
            inputs=[whole, q_weight, k_weight, eps, start.astype(mx.int32), periods],
            template=[
                ("T", whole.dtype), ("HEADS", heads), ("KV_HEADS", kv_heads), ("DIM", head_dim), ("ROTATED", rotated),
                ("ROWS", start.size), ("NORMED", weights is not None),
            ],
            grid=(32 * count, new, batch),
            threadgroup=(32, 1, 1),
            output_shapes=[(batch, heads, new, head_dim), (batch, 2 * kv_heads, new, head_dim)],
            output_dtypes=[whole.dtype, whole.dtype],
        )  # fmt: skip
        return q, kv

    def cases(self, dtype: mx.Dtype) -> Iterator[Case]:
        shapes = (  # batch, tokens, heads, kv_heads, head_dim, rotated, normed
            (1, 1, 9, 3, 64, 64, True),
            (1, 1, 4, 2, 128, 128, False),
            (3, 1, 2, 1, 40, 40, True),
            (2, 5, 3, 3, 80, 32, False),
            (1, 3, 6, 1, 20, 20, True),
            (9, 2, 1, 1, 256, 64, True),
        )
        for batch, new, heads, kv_heads, dim, rotated, normed in shapes:
            count = heads + 2 * kv_heads
            whole = random(1, dtype, batch, new, count * dim)
            weights = (random(2, dtype, dim), random(3, dtype, dim)) if normed else None
            start = mx.array(np.arange(batch) * 411 + 7, mx.int32)
            periods = mx.array((10_000.0 ** (np.arange(0, rotated, 2) / rotated)).astype(np.float32))
            shape: dict[str, Any] = dict(eps=1e-6, heads=heads, kv_heads=kv_heads, head_dim=dim, rotated=rotated)
            arguments = (whole, weights, start, periods)
            yield Case(
                f"{batch}x{new} {heads}+2*{kv_heads} heads of {dim}, {rotated} rotated{', normed' if normed else ''}",
                lambda kernel, a=arguments, s=shape: kernel(*a, **s),
                lambda a=arguments, s=shape: body(*a, **s),
                _expected(*arguments, **shape),
                limit=2.0,
            )


def _expected(whole, weights, start, periods, *, eps, heads, kv_heads, head_dim, rotated):
    """The same in float64 NumPy; only the angle is rounded to float32, as in all implementations."""
    batch, new = whole.shape[:2]
    x = exact(whole).reshape(batch, new, heads + 2 * kv_heads, head_dim).transpose(0, 2, 1, 3)
    normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    q, k, v = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
    if weights is not None:
        q, k = normal[:, :heads] * exact(weights[0]), normal[:, heads : heads + kv_heads] * exact(weights[1])
    positions = (np.array(start)[:, None] + np.arange(new)).astype(np.float32)
    angles = (positions[..., None] * (np.float32(1) / np.array(periods))).astype(np.float64)[:, None]
    c, s, half = np.cos(angles), np.sin(angles), rotated // 2

    def rotate(y: np.ndarray) -> np.ndarray:
        a, b, rest = y[..., :half], y[..., half:rotated], y[..., rotated:]
        return np.concatenate([a * c - b * s, a * s + b * c, rest], -1)

    return rotate(q), np.concatenate([rotate(k), v], 1)


def body(
    whole: mx.array,
    weights: tuple[mx.array, mx.array] | None,
    start: mx.array,
    periods: mx.array,
    *,
    eps: float,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotated: int,
) -> tuple[mx.array, mx.array]:
    """The same computation in MLX's ops."""
    x = whole.reshape(*whole.shape[:2], heads + 2 * kv_heads, head_dim).transpose(0, 2, 1, 3)
    q, k, v = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
    if weights is not None:
        q, k = mx.fast.rms_norm(q, weights[0], eps), mx.fast.rms_norm(k, weights[1], eps)
    offset = start if start.size > 1 else start.reshape(())
    q, k = (
        mx.fast.rope(y, rotated, traditional=False, base=None, scale=1.0, offset=offset, freqs=periods) for y in (q, k)
    )
    return q, mx.concatenate([k, v], 1)


KERNEL = RopePack
