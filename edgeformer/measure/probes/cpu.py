"""The CPU's read bandwidth and matrix product rates: the best that BLAS and ONNX Runtime reach with the given threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

SIDE, REPEATS, SPAN_S = 1024, 5, 0.3


def rates(threads: int, sizes: list[int]) -> dict[str, Any]:
    """Bytes per second read from buffers of each size (small ones stay in caches), and operations per second.

    Returns:
        `bandwidth`: [[bytes, bytes/s], ...]; `fp32_flops`, `int8_ops`: multiplications and additions per second.
    """
    return {
        "bandwidth": [[size, _read_rate(size, threads)] for size in sizes],
        "fp32_flops": _matmul_rate("fp32", threads),
        "int8_ops": _matmul_rate("int8", threads),
    }


def _best(call: Callable[[], Any], work: float) -> float:
    """Work per second of the fastest call: at least `REPEATS` calls, over at least `SPAN_S` seconds."""
    call()
    best, until, count = float("inf"), time.perf_counter() + SPAN_S, 0
    while count < REPEATS or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        best, count = min(best, time.perf_counter() - start), count + 1
    return work / best


def _read_rate(size: int, threads: int) -> float:
    """Bytes per second of a dot product of an array with itself, which reads it once."""
    data = np.ones(max(size // 4, threads), np.float32)
    parts = np.array_split(data, threads)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        return _best(lambda: list(pool.map(lambda part: np.dot(part, part), parts)), data.nbytes)


def _matmul_rate(kind: str, threads: int) -> float:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    dtype, op = (TensorProto.FLOAT, "MatMul") if kind == "fp32" else (TensorProto.INT8, "MatMulInteger")
    array = np.ones((SIDE, SIDE), np.float32 if kind == "fp32" else np.int8)
    given = helper.make_tensor_value_info("a", TensorProto.FLOAT if kind == "fp32" else TensorProto.UINT8, [SIDE, SIDE])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT if kind == "fp32" else TensorProto.INT32, [SIDE, SIDE])
    weight = helper.make_tensor("b", dtype, [SIDE, SIDE], array.tobytes(), raw=True)
    graph = helper.make_graph([helper.make_node(op, ["a", "b"], ["y"])], "rate", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    feed = {"a": array if kind == "fp32" else array.astype(np.uint8)}
    rate = _best(lambda: session.run(None, feed), 2 * SIDE**3)
    if kind == "fp32":
        with threadpool_limits(threads):
            rate = max(rate, _best(lambda: array @ array, 2 * SIDE**3))
    return rate
