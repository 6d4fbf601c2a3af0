"""The native engine against llama.cpp and ONNX Runtime: `python benchmarks/native.py MODEL [ROUNDS] [THREADS]`.

One interleaved run per prompt length (128, 512), every row verified; ratios are round by round, the other's time / ours: above 1
means that we are faster. Then where a decode step's time goes, with the bytes of weights that each kind of instruction reads per
second, beside what this machine reads from a buffer of that size; and where a prompt's time goes, with operations per second.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np

from edgeformer.checkpoint.loading import load
from edgeformer.inference.lookup import get, require
from edgeformer.inference.profile import block_of
from edgeformer.inference.runtime import Options
from edgeformer.inference.threads import physical_cores
from edgeformer.measure.comparison import compare
from edgeformer.measure.roofline import measure_rates
from edgeformer.measure.settings import Settings

PRECISIONS = ("fp32", "q8", "q4")
STEPS, PROMPT = 64, 512


def ratios(model: str, rounds: int, threads: int) -> dict[str, str]:
    """Print the ratios; returns the artefact of each precision."""
    others = [name for name in ("llama_cpp", "onnxruntime") if get(name)[0].unavailable() is None]
    settings = Settings(rounds=rounds, threads=threads, prompts=(128, 512))
    _, done = compare(
        model, runtimes=["native", *others], precisions=PRECISIONS, settings=settings,
        report=lambda s: print(s, file=sys.stderr),
    )  # fmt: skip
    sources: dict[str, str] = {}
    for shape in done.shapes:
        noise = shape.noise
        print(
            f"{shape.shape}: {threads} threads, {rounds} rounds; the same row twice differs by {noise.text() if noise else '?'}"
        )
        rows = {(r.plan.runtime, r.plan.precision): r for r in shape.rows if not r.plan.again}
        for precision in PRECISIONS:
            ours = rows["native", precision]
            sources[precision] = ours.plan.source
            for name in others:
                for part in ("decode", "prefill"):
                    a, b = (getattr(r, f"{part}_medians_ns")() for r in (ours, rows[name, precision]))
                    found = sorted(theirs / mine for mine, theirs in zip(a, b, strict=True))
                    middle = statistics.median(found)
                    print(
                        f"  {precision} {part}: {middle:.2f} x ({found[0]:.2f} - {found[-1]:.2f}) of {name}; {ours.verdict}"
                    )
    return sources


def breakdown(source: str, precision: str, threads: int) -> None:
    """Print where the time of a decode step goes."""
    runtime, _ = require("native")
    opened = Path(source) if (Path(source) / "edgeformer.json").exists() else load(source)
    session = runtime.open(opened, Options(threads=threads, capacity=256 + STEPS))
    ids = np.random.default_rng(0).integers(0, session.spec.vocab, (1, 128 + STEPS))
    session.forward(ids[:, :128])
    with session.decoder.profiled() as spent:
        for i in range(128, 128 + STEPS):
            session.forward(ids[:, i : i + 1])
    bits = {0: 32, 1: 16, 2: 16, 3: 8.5, 4: 4.5, 5: 8.5, 6: 4.5}  # per weight, by kind
    times: dict[str, list[float]] = {}
    layout = session.model.layout
    for instruction, laid_out, ns in zip(layout.code, layout.instructions, spent.tolist(), strict=True):
        read = 0.0
        if instruction.op.name in ("LINEAR", "GLU"):
            matrix = layout.matrices[laid_out.matrix]
            read = matrix.rows * matrix.cols * bits[matrix.kind] / 8
        entry = times.setdefault(f"{block_of(instruction.path)} {instruction.op.name.lower()}", [0.0, 0.0])
        entry[0] += ns / STEPS
        entry[1] += read
    total, weights = (sum(t[n] for t in times.values()) for n in (0, 1))
    rates = next(iter(measure_rates(threads, [int(weights)]).values()))
    bound = max(rate for _, rate in rates["bandwidth"])
    print(
        f"{precision}: {total / 1e6:.2f} ms per token, {weights / total:.1f} GB/s; this machine reads {bound / 1e9:.1f} GB/s"
    )
    for name, (ns, size) in sorted(times.items(), key=lambda t: -t[1][0]):
        print(f"  {name:<20} {ns / 1e3:8.0f} us {ns / total:6.1%}" + (f" {size / ns:6.1f} GB/s" if size else ""))


def prefill(source: str, precision: str, threads: int) -> None:
    """Print where the time of a prompt goes, with the operations per second of each kind of product."""
    runtime, _ = require("native")
    opened = Path(source) if (Path(source) / "edgeformer.json").exists() else load(source)
    session = runtime.open(opened, Options(threads=threads, capacity=PROMPT))
    ids = np.random.default_rng(0).integers(0, session.spec.vocab, (1, PROMPT))
    session.forward(ids)
    session.reset()
    with session.decoder.profiled() as spent:
        session.forward(ids)
    layout, times = session.model.layout, dict[str, list[float]]()
    for instruction, laid_out, ns in zip(layout.code, layout.instructions, spent.tolist(), strict=True):
        done = 0.0
        if instruction.op.name in ("LINEAR", "GLU"):
            matrix = layout.matrices[laid_out.matrix]
            done = 2.0 * matrix.rows * matrix.cols * (1 if laid_out.kept else PROMPT)
        entry = times.setdefault(f"{block_of(instruction.path)} {instruction.op.name.lower()}", [0.0, 0.0])
        entry[0] += ns
        entry[1] += done
    total = sum(ns for ns, _ in times.values())
    print(
        f"{precision}: a prompt of {PROMPT} in {total / 1e6:.1f} ms, {sum(n for _, n in times.values()) / total:.0f} GOP/s"
    )
    for name, (ns, done) in sorted(times.items(), key=lambda t: -t[1][0]):
        print(f"  {name:<20} {ns / 1e3:8.0f} us {ns / total:6.1%}" + (f" {done / ns:6.0f} GOP/s" if done else ""))


def main() -> None:
    """Run and print."""
    model = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else physical_cores()
    for precision, source in ratios(model, rounds, threads).items():
        breakdown(source, precision, threads)
        prefill(source, precision, threads)


if __name__ == "__main__":
    main()
