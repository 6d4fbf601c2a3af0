"""The emulator itself: MLX's own production kernels, read from the installed wheel, must say what they say in
float64, or what MLX's CPU ops say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from metal_emulator import program  # noqa: E402
from metal_emulator.bridge import INCLUDE, UTILS, from_numpy, to_numpy  # noqa: E402

from edgeformer.backends.mlx.metal._kernel import exact  # noqa: E402

if reason := program.available():
    pytest.skip(reason, allow_module_level=True)

KERNELS = Path(INCLUDE) / "mlx/backend/metal/kernels"
NAMES = {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat"}
LIMITS = {mx.float32: 4 * 2**-23, mx.float16: 2**-10, mx.bfloat16: 2**-7}  # of the largest |value|: MLX's own rounding


def text(name):
    return (KERNELS / name).read_text()


def ints(*values, dtype=np.int32):
    return np.array(values, dtype)


def normal(seed, dtype, *shape):
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "batch", "heads", "kv_heads", "queries", "keys", "dim", "mask"),
    [
        (mx.float32, 1, 9, 3, 1, 200, 64, None),
        (mx.bfloat16, 1, 9, 3, 1, 200, 64, None),
        (mx.float16, 1, 4, 2, 3, 77, 128, "causal"),
        (mx.float32, 2, 4, 2, 1, 100, 64, "float"),
        (mx.float32, 1, 2, 1, 1, 33, 96, "sinks"),
        (mx.bfloat16, 1, 2, 2, 2, 40, 256, "causal"),
    ],
)
def test_mlx_sdpa_vector(dtype, batch, heads, kv_heads, queries, keys, dim, mask):
    """Threadgroups of 1024 threads, simdgroup reductions, threadgroup memory, barriers."""
    q = normal(1, dtype, batch, heads, queries, dim)
    k, v = (normal(s, dtype, batch, kv_heads, keys, dim) for s in (2, 3))
    added = normal(4, dtype, batch, heads, queries, keys) if mask == "float" else None
    sinks = normal(5, dtype, heads) if mask == "sinks" else None
    constants = {"do_causal": mask == "causal", "has_mask": added is not None, "float_mask": added is not None}
    constants["has_sinks"] = sinks is not None
    made = program.Program(text("sdpa_vector.h"), "sdpa_vector", f"{NAMES[dtype]}, {dim}", constants, [UTILS], INCLUDE)
    unused, scale = np.zeros(8, np.uint16), dim**-0.5
    out = np.zeros(q.shape, to_numpy(q).dtype)
    head, row = ints(keys * dim, dtype=np.uint64), ints(dim, dtype=np.uint64)
    buffers = [
        to_numpy(q), to_numpy(k), to_numpy(v), out, ints(heads // kv_heads), ints(keys), head, row, head, row,
        np.array([scale], np.float32), unused, unused if added is None else to_numpy(added), ints(1), ints(keys),
        ints(keys * queries), unused if sinks is None else to_numpy(sinks), ints(heads),
    ]  # fmt: skip
    expected = attention(*(exact(x) for x in (q, k, v)), scale, mask == "causal", added, sinks)
    results = []
    for order in (0, 1, 2):
        found = made.run(buffers, [3], (batch * heads * 1024, queries, 1), (1024, 1, 1), order)[0]
        results.append(found)
        error = np.abs(exact(from_numpy(found, dtype)) - expected).max() / np.abs(expected).max()
        assert error <= LIMITS[dtype]
    assert all(np.array_equal(results[0], r) for r in results)
    assert made.statistics["barriers"] > 0 and made.statistics["threadgroup_bytes"] > 4096


def attention(q, k, v, scale, causal, added, sinks):
    """In float64; a sink is a score with no value."""
    groups, new, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    scores = q @ np.repeat(k, groups, 1).swapaxes(-1, -2) * scale
    if causal:
        scores = np.where(np.arange(keys) <= np.arange(keys - new, keys)[:, None], scores, -np.inf)
    if added is not None:
        scores = scores + exact(added)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    total = p.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(exact(sinks)[None, :, None, None] - scores.max(-1, keepdims=True))
    return p / total @ np.repeat(v, groups, 1)


def matrix_vector_part():
    """quantized.h without its tiled products, which need simdgroup matrices."""
    lines = (text("quantized_utils.h").replace("#pragma once", "") + text("quantized.h")).split("\n")

    def template_before(what):
        at = next(i for i, line in enumerate(lines) if what in line)
        while not lines[at].startswith("template"):
            at -= 1
        return at

    functions = ("METAL_FUNC void qmm_t_impl(", "METAL_FUNC void adjust_matrix_offsets(", "void affine_qmm_t(")
    tiles, rest, end = map(template_before, functions)
    return "\n".join(lines[:tiles] + lines[rest:end])


@pytest.mark.parametrize(
    ("dtype", "bits", "group", "inputs", "outputs"),
    [
        (mx.float32, 4, 64, 1024, 64),
        (mx.bfloat16, 4, 64, 1024, 32),
        (mx.float16, 8, 64, 512, 40),
        (mx.float32, 2, 128, 1024, 16),
        (mx.float32, 3, 64, 512, 24),
        (mx.float32, 6, 32, 512, 8),
    ],
)
def test_mlx_affine_qmv_fast(dtype, bits, group, inputs, outputs):
    """Packed codes, simdgroup sums, integer arithmetic on several word sizes."""
    x, w = normal(1, dtype, 1, inputs), normal(2, dtype, outputs, inputs)
    codes, scales, biases = mx.quantize(w, group_size=group, bits=bits)
    headers = [UTILS, "mlx/backend/metal/kernels/steel/utils.h"]
    template = f"{NAMES[dtype]}, {group}, {bits}, false, false"
    made = program.Program(matrix_vector_part(), "affine_qmv_fast", template, {}, headers, INCLUDE)
    y, nothing = np.zeros((1, outputs), to_numpy(x).dtype), np.zeros(2, np.int64)
    buffers = [
        to_numpy(codes), to_numpy(scales), to_numpy(biases), to_numpy(x), y, ints(inputs), ints(outputs), ints(0),
        ints(1, inputs), ints(inputs, 1, dtype=np.int64), ints(0), ints(outputs, inputs), nothing, nothing, nothing,
    ]  # fmt: skip
    f32 = [a.astype(mx.float32) for a in (scales, biases)]
    expected = mx.quantized_matmul(x.astype(mx.float32), codes, *f32, group_size=group, bits=bits)
    for order in (0, 1, 2):
        found = made.run(buffers, [4], (32, outputs // 8 * 2, 1), (32, 2, 1), order)[0]
        error = mx.abs(from_numpy(found, dtype).astype(mx.float32) - expected).max() / mx.abs(expected).max()
        assert error.item() <= 4 * LIMITS[dtype]


def test_bfloat_rounds_as_mlx():
    """The shim's own bfloat16, which no production kernel pins: every rounding case, through a kernel that converts."""
    from metal_emulator.bridge import Emulator

    kernel = mx.fast.metal_kernel(
        name="convert", input_names=["x"], output_names=["y"],
        source="uint i = thread_position_in_grid.x; y[i] = bfloat16_t(x[i]) * bfloat16_t(3.0f) + bfloat16_t(x[i]);",
    )  # fmt: skip
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32)
    bits[:4] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001]  # ties to even, overflow, a denormal
    x = mx.array(bits.view(np.float32))
    found = Emulator(kernel)(
        inputs=[x], output_shapes=[x.shape], output_dtypes=[mx.bfloat16], grid=(4096, 1, 1), threadgroup=(256, 1, 1)
    )[0]
    b = x.astype(mx.bfloat16)
    expected = (b * mx.array(3.0, mx.bfloat16) + b).astype(mx.float32)
    assert np.array_equal(np.array(expected), np.array(found.astype(mx.float32)), equal_nan=True)


def test_a_grid_that_is_no_multiple():
    """Threadgroups at the edge are smaller, as with dispatchThreads."""
    from metal_emulator.bridge import Emulator

    kernel = mx.fast.metal_kernel(
        name="edge", input_names=["x"], output_names=["y"],
        source="y[thread_position_in_grid.x] = x[0] + float(threads_per_threadgroup.x);",
    )  # fmt: skip
    emulator = Emulator(kernel)
    y = emulator(
        inputs=[mx.zeros(8)], output_shapes=[(70,)], output_dtypes=[mx.float32], grid=(70, 1, 1), threadgroup=(32, 1, 1)
    )[0]
    assert y.tolist() == [32.0] * 64 + [6.0] * 6
