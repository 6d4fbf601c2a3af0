"""Stacks of linear maps (experts, latent attention's maps per head) as modules, plain and quantized."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class Stacked(nn.Module):
    """`count` linear maps in one array `[count, outputs, inputs]`."""

    def __init__(self, count: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = mx.zeros((count, outputs, inputs))

    def each(self, x: mx.array) -> mx.array:
        """[B, count or 1, T, inputs] -> [B, count, T, outputs]."""
        return x @ self.weight.swapaxes(-1, -2)

    def chosen(self, x: mx.array, which: mx.array) -> mx.array:
        """Apply the maps `which` [B, T, k] to x [B, T, 1 or k, 1, inputs] -> [B, T, k, 1, outputs]."""
        kind, weight = x.dtype, self.weight.swapaxes(-1, -2)
        if kind != mx.float32 and mx.default_device() == mx.cpu:  # MLX's CPU gather_mm supports float32 only
            x, weight = x.astype(mx.float32), weight.astype(mx.float32)
        return mx.gather_mm(x, weight, rhs_indices=which.astype(mx.uint32)).astype(kind)

    def to_quantized(self, group_size: int = 64, bits: int = 4, mode: str = "affine") -> QuantizedStacked:
        """The maps quantized by MLX; `nn.quantize` calls this."""
        made = QuantizedStacked(group_size, bits, mode)
        made.weight, made.scales, *biases = mx.quantize(self.weight, group_size, bits, mode)
        if biases:
            made.biases = biases[0]
        return made


class QuantizedStacked(nn.Module):
    """`Stacked` with MLX's quantization along the inputs: weight uint32 `[count, outputs, inputs · bits / 32]`, scales (and
    biases) `[count, outputs, inputs / group_size]`."""

    weight: mx.array
    scales: mx.array

    def __init__(self, group_size: int, bits: int, mode: str = "affine"):
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.freeze()

    def each(self, x: mx.array) -> mx.array:
        """[B, count or 1, T, inputs] -> [B, count, T, outputs]."""
        return self._product(x, mx.arange(self.weight.shape[0], dtype=mx.uint32)[None])

    def chosen(self, x: mx.array, which: mx.array) -> mx.array:
        """Apply the maps `which` [B, T, k] to x [B, T, 1 or k, 1, inputs] -> [B, T, k, 1, outputs]."""
        return self._product(x, which.astype(mx.uint32))

    def _product(self, x: mx.array, which: mx.array) -> mx.array:
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            rhs_indices=which,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
