"""Gate, up and activation of a gated FFN in one kernel launch, for the few rows of a decode step."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from edgeformer.backends.mlx.metal._kernel import FLOATS, Case, Kernel, exact, random
from edgeformer.weights.affine import dequantize

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "relu": 2, "relu2": 3}
"""Activations that Metal's functions can compute; Metal has no error function (GELU)."""
MAX_ROWS = 4
SIMDGROUPS = 2


class GluGemv(Kernel):
    """act(gate(x)) · up(x) (Shazeer 2020) on the packed map gate|up: 4-bit, 8-bit or plain weights. Saves one launch."""

    name = "glu_gemv"
    inputs = ("x", "w", "scales", "biases")
    outputs = ("y",)

    def takes(self, x: mx.array, parent: nn.Module, act: str) -> bool:
        quantized = isinstance(parent, nn.QuantizedLinear)
        known = quantized and parent.bits in (4, 8) and parent.mode == "affine"
        plain = isinstance(parent, nn.Linear) and parent.weight.dtype == x.dtype
        rows = x.size // x.shape[-1]
        return (
            (known or plain) and "bias" not in parent and act in ACTIVATIONS and rows <= MAX_ROWS and x.dtype in FLOATS
        )

    def __call__(self, x: mx.array, parent: nn.Linear | nn.QuantizedLinear, *, act: str) -> mx.array:
        """x: [..., D]; parent: the packed map [2F, D]; returns [..., F]."""
        quantized = isinstance(parent, nn.QuantizedLinear)
        hidden, width = parent.weight.shape[0] // 2, x.shape[-1]
        scales, biases = (parent.scales, parent.biases) if quantized else [mx.zeros(8, x.dtype)] * 2
        rows = x.size // width
        groups = -(-hidden // (4 * SIMDGROUPS))
        return self.launch(
            inputs=[x, parent.weight, scales, biases],
            template=[
                ("T", x.dtype), ("WIDTH", width), ("HIDDEN", hidden), ("SIMDGROUPS", SIMDGROUPS),
                ("BITS", parent.bits if quantized else 0), ("GROUP", parent.group_size if quantized else 1),
                ("ACT", ACTIVATIONS[act]),
            ],
            grid=(32, groups * SIMDGROUPS, rows),
            threadgroup=(32, SIMDGROUPS, 1),
            output_shapes=[(*x.shape[:-1], hidden)],
            output_dtypes=[x.dtype],
        )[0]  # fmt: skip

    def cases(self, dtype: mx.Dtype) -> Iterator[Case]:
        shapes = (  # rows, width, hidden, bits, group, activation
            (1, 576, 96, 4, 64, "silu"),
            (1, 640, 50, 4, 32, "gelu_tanh"),
            (2, 1024, 33, 8, 64, "silu"),
            (1, 128, 7, 8, 128, "relu"),
            (1, 576, 40, 0, 0, "silu"),
            (3, 77, 13, 0, 0, "relu2"),
            (4, 256, 64, 4, 128, "silu"),
        )
        for rows, width, hidden, bits, group, act in shapes:
            x, w = random(1, dtype, rows, width), random(2, dtype, 2 * hidden, width, scale=width**-0.5)
            parent = _parent(w, bits, group)
            yield Case(
                f"{rows} rows, {width} -> {hidden}, {f'{bits} bits by {group}' if bits else 'plain'}, {act}",
                lambda kernel, x=x, p=parent, act=act: [kernel(x, p, act=act)],
                lambda x=x, p=parent, act=act: [body(x, p, act)],
                [_expected(x, parent, act)],
                limit=8.0,  # gate and up are rounded to T before they are multiplied
            )


def _parent(w: mx.array, bits: int, group: int) -> nn.Linear | nn.QuantizedLinear:
    if not bits:
        parent = nn.Linear(1, 1, bias=False)
        parent.weight = w
        return parent
    parent = nn.QuantizedLinear(group, group, False, group, bits)
    parent.weight, parent.scales, parent.biases = mx.quantize(w, group_size=group, bits=bits)
    return parent


def _expected(x: mx.array, parent: nn.Linear | nn.QuantizedLinear, act: str) -> np.ndarray:
    if isinstance(parent, nn.QuantizedLinear):
        w = dequantize(np.array(parent.weight), exact(parent["scales"]), exact(parent["biases"]), parent.bits)
    else:
        w = exact(parent.weight)
    gate, up = np.split(exact(x) @ w.T, 2, -1)
    if act == "silu":
        return gate / (1 + np.exp(-gate)) * up
    if act == "gelu_tanh":
        return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
    return np.maximum(gate, 0) ** (2 if act == "relu2" else 1) * up


def body(x: mx.array, parent: nn.Linear | nn.QuantizedLinear, act: str) -> mx.array:
    """The same computation in MLX's ops."""
    gate, up = mx.split(parent(x), 2, -1)
    functions = {"silu": nn.silu, "gelu_tanh": nn.gelu_approx, "relu": nn.relu, "relu2": nn.relu2}
    return functions[act](gate) * up


KERNEL = GluGemv
