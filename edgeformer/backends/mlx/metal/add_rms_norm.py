"""Residual addition and RMSNorm in one kernel launch."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from edgeformer.backends.mlx.metal._kernel import FLOATS, Case, Kernel, differentiable, exact, random


class AddRMSNorm(Kernel):
    """`(x + d, rms_norm(x + d))` (Zhang & Sennrich 2019). Saves the addition's launch: one per norm."""

    name = "add_rms_norm"
    inputs = ("x", "d", "w", "eps")
    outputs = ("total", "y")

    def takes(self, x: mx.array) -> bool:
        return x.dtype in FLOATS and x.size > 0

    def __call__(self, x: mx.array, d: mx.array, weight: mx.array, *, eps: float) -> tuple[mx.array, mx.array]:
        """x, d: [..., D]; weight: [D]. Returns the sum and its norm, in x's dtype."""
        width = x.shape[-1]
        threads = min(1024, -(-width // 128) * 32)  # four elements per thread

        def forward(x: mx.array, d: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
            total, y = self.launch(
                inputs=[x, d.astype(x.dtype), weight.astype(x.dtype), eps],
                template=[("T", x.dtype), ("WIDTH", width)],
                grid=(threads * (x.size // width), 1, 1),
                threadgroup=(threads, 1, 1),
                output_shapes=[x.shape, x.shape],
                output_dtypes=[x.dtype, x.dtype],
            )
            return total, y

        return differentiable(forward, lambda *a: list(body(*a, eps=eps)))(x, d, weight)

    def cases(self, dtype: mx.Dtype) -> Iterator[Case]:
        for rows, width in ((1, 576), (3, 1000), (2, 4096), (5, 7), (4, 33), (1, 2049)):
            x, d, w = random(1, dtype, rows, width), random(2, dtype, rows, width), random(3, dtype, width)
            total = exact(
                (x.astype(mx.float32) + d.astype(mx.float32)).astype(dtype)
            )  # rounding the sum is part of the op
            norm = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * exact(w)
            yield Case(
                f"{rows}x{width}",
                lambda kernel, x=x, d=d, w=w: kernel(x, d, w, eps=1e-5),
                lambda x=x, d=d, w=w: body(x, d, w, eps=1e-5),
                (total, norm),
                limit=2.0,
            )


def body(x: mx.array, d: mx.array, weight: mx.array, *, eps: float) -> tuple[mx.array, mx.array]:
    """The same computation in MLX's ops."""
    total = x + d
    return total, mx.fast.rms_norm(total, weight, eps)


KERNEL = AddRMSNorm
