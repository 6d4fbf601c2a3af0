"""An accelerator's read bandwidth and matrix product rates: Metal through MLX, CUDA through PyTorch. Never run on either."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SIDE, REPEATS = 4096, 20


def rates(threads: int, sizes: list[int]) -> dict[str, Any] | None:
    """Same as the CPU's; None without an accelerator. Buffers are at least 256 MB: smaller ones measure launch overhead."""
    sizes = [max(size, 256_000_000) for size in sizes]
    return _metal(sizes) or _cuda(sizes)


def _best(call: Callable[[], Any], wait: Callable[[Any], Any], work: float) -> float:
    wait(call())
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        wait(call())
        best = min(best, time.perf_counter() - start)
    return work / best


def _metal(sizes: list[int]) -> dict[str, Any] | None:
    try:
        import mlx.core as mx
    except ImportError:
        return None
    if not mx.metal.is_available():
        return None
    found = []
    for size in sizes:
        data = mx.ones((size // 4,))
        mx.eval(data)
        found.append([size, _best(data.sum, mx.eval, size)])
    a, half = mx.ones((SIDE, SIDE)), mx.ones((SIDE, SIDE), mx.float16)
    return {
        "bandwidth": found,
        "fp32_flops": _best(lambda: a @ a, mx.eval, 2 * SIDE**3),
        "fp16_flops": _best(lambda: half @ half, mx.eval, 2 * SIDE**3),
        "int8_ops": None,  # MLX has no int8 products on Metal
    }


def _cuda(sizes: list[int]) -> dict[str, Any] | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def wait(_: object) -> None:
        torch.cuda.synchronize()

    found = []
    for size in sizes:
        data = torch.ones(size // 4, device="cuda")
        found.append([size, _best(data.sum, wait, size)])
    a, int_product = torch.ones(SIDE, SIDE, device="cuda"), getattr(torch, "_int_mm")  # noqa: B009 - it has no public name
    half, byte = a.half(), torch.ones(SIDE, SIDE, device="cuda", dtype=torch.int8)
    return {
        "bandwidth": found,
        "fp32_flops": _best(lambda: a @ a, wait, 2 * SIDE**3),
        "fp16_flops": _best(lambda: half @ half, wait, 2 * SIDE**3),
        "int8_ops": _best(lambda: int_product(byte, byte), wait, 2 * SIDE**3),
    }
