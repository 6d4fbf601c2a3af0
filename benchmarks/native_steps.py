"""Steps that `compare` has no rows for: `python benchmarks/native_steps.py MODEL [DEPTH] [ROUNDS] [THREADS]`.

Decoding with DEPTH tokens (4096) in the cache, in `native`, ONNX Runtime with the kernels and llama.cpp, on the same bits, with
fp32 caches; medians of interleaved rounds of 16 tokens. It prints how far each runtime's logits after the prompt are from
native's. Then what 2, 3, 4 and 8 tokens at once cost in units of one, with 256 in the cache.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import edgeformer
from edgeformer.checkpoint.loading import load
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options, Session
from edgeformer.inference.threads import physical_cores

STEPS = 16


def opened(model: str, precision: str, folder: Path, threads: int, capacity: int) -> dict[str, Session]:
    """A session per runtime, on the same bits."""
    artefact, gguf = folder / f"{precision}-onnx", folder / f"{precision}-gguf"
    level = {} if precision == "fp32" else {"accuracy_level": 4}
    edgeformer.export(model, artefact, precision=precision, **level)
    options = Options(threads=threads, capacity=capacity)
    native, onnxruntime = require("native")[0], require("onnxruntime")[0]
    kernels = Options(threads=threads, capacity=capacity, variant="kernels")
    made = {"native": native.open(artefact, options), "onnxruntime:kernels": onnxruntime.open(artefact, kernels)}
    runtime, _ = get("llama_cpp")
    if runtime.unavailable() is None:
        edgeformer.export(model, gguf, to="gguf", precision=precision, no_tokenizer=True)
        made["llama_cpp"] = runtime.open(gguf, options)
    return made


def decode(session: Session, token: int) -> float:
    """Seconds per token."""
    start = time.perf_counter()
    for _ in range(STEPS):
        session.forward(np.array([[token]], np.int64))
    return (time.perf_counter() - start) / STEPS


def main(model: str, depth: int, rounds: int, threads: int) -> None:
    """Print all figures."""
    vocab = load(model).spec.vocab
    prompt = np.random.default_rng(0).integers(0, vocab, (1, depth))
    for precision in ("fp32", "q8", "q4"):
        with tempfile.TemporaryDirectory() as folder:
            capacity = depth + 1 + (rounds + 1) * STEPS
            sessions = opened(model, precision, Path(folder), threads, capacity)
            first = {}
            for name, session in sessions.items():
                start = time.perf_counter()
                first[name] = session.forward(prompt)[0]
                spent = time.perf_counter() - start
                off = np.abs(first[name] - first["native"]).max()
                print(
                    f"{precision} {name}: prompt of {depth} in {spent:.2f} s; logits differ from native's by {off:.1e}"
                )
            times: dict[str, list[float]] = {name: [] for name in sessions}
            for turn in range(rounds + 1):
                for name, session in sessions.items():
                    spent = decode(session, int(first["native"].argmax()))
                    if turn:  # the first round warms up
                        times[name].append(spent)
            for name, found in times.items():
                shares = sorted(a / b for a, b in zip(found, times["native"], strict=True))
                print(
                    f"{precision} {name}: {1 / statistics.median(found):.1f} tok/s after {depth};"
                    f" {statistics.median(shares):.2f} x native's time ({shares[0]:.2f} - {shares[-1]:.2f})"
                )
            several(sessions["native"], precision, rounds, vocab)


def several(session: Session, precision: str, rounds: int, vocab: int) -> None:
    """What several tokens at once cost."""
    session.reset()
    session.forward(np.random.default_rng(1).integers(0, vocab, (1, 256)))
    counts = (1, 2, 3, 4, 8)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(max(rounds, 5) * 4):
        for count in counts:
            ids = np.full((1, count), 7)
            start = time.perf_counter()
            session.forward(ids)
            times[count].append(time.perf_counter() - start)
            if session.length > 480:
                session.reset()
                session.forward(np.random.default_rng(1).integers(0, vocab, (1, 256)))
    one = statistics.median(times[1])
    costs = ", ".join(f"{count}: {statistics.median(times[count]) / one:.2f}" for count in counts[1:])
    print(f"{precision} native: tokens at once in units of one: {costs}")


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[2:]]
    depth, rounds, threads, *_ = [*numbers, *[4096, 5, physical_cores()][len(numbers) :]]
    main(sys.argv[1], depth, rounds, threads)
