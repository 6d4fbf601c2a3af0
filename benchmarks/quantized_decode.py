"""Quantized rows against their own fp32 and against llama.cpp: `python benchmarks/quantized_decode.py MODEL [ROUNDS] [THREADS]`.

One interleaved run of fp32, q8 and q4 in ONNX Runtime and, where it is installed, llama.cpp; every row is verified. Ratios are
round by round, the other's time / ours: above 1 means that we are faster. Ends with exit code 1 if a quantized row of ours
decodes slower than its own fp32.
"""

from __future__ import annotations

import statistics
import sys

from edgeformer.inference.lookup import get
from edgeformer.inference.threads import physical_cores
from edgeformer.measure.comparison import compare
from edgeformer.measure.settings import Settings

PRECISIONS = ("fp32", "q8", "q4")


def main() -> None:
    """Run and print."""
    model = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else physical_cores()
    runtimes = ["onnxruntime", *(["llama_cpp"] if get("llama_cpp")[0].unavailable() is None else [])]
    settings = Settings(rounds=rounds, threads=threads)
    _, done = compare(
        model, runtimes=runtimes, precisions=PRECISIONS, settings=settings, report=lambda s: print(s, file=sys.stderr)
    )
    rows = {(r.plan.runtime, r.plan.precision): r for r in done.rows if not r.plan.again}
    noise = done.shapes[0].noise
    print(
        f"{threads} threads, {rounds} rounds; the same row twice differs by {noise.text() if noise else 'an unknown factor'}"
    )
    slower = False
    for precision in PRECISIONS:
        ours = rows["onnxruntime", precision]
        others = {"its own fp32": rows["onnxruntime", "fp32"], "llama.cpp": rows.get(("llama_cpp", precision))}
        for name, other in others.items():
            if other is None or other is ours:
                continue
            for part in ("decode", "prefill"):
                a, b = (getattr(r, f"{part}_medians_ns")() for r in (ours, other))
                ratios = sorted(theirs / mine for mine, theirs in zip(a, b, strict=True))
                middle = statistics.median(ratios)
                print(
                    f"{precision} {part}: {middle:.2f} x ({ratios[0]:.2f} - {ratios[-1]:.2f}) of {name}; {ours.verdict}"
                )
                slower |= name == "its own fp32" and part == "decode" and middle < 1
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
