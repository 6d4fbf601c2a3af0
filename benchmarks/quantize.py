"""Quantization as whole processes: `python benchmarks/quantize.py FOLDER [ROUNDS]` after make_checkpoints.py.

Wall time and peak resident memory (wait4's ru_maxrss), interleaved: a 135M checkpoint to a q4 ONNX folder in one step (rounded
on the way), in two (`quantize`, then `export --weights link`), quantized with a scale search, and by ONNX Runtime GenAI's builder
at int4; ratios are against the builder. Then a 7B-shaped bf16 checkpoint quantized to q4, with its peak beside 2 × its largest
tensor + 300 MB.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

from processes import measure

from edgeformer.checkpoint.loading import load

LARGEST_ALLOWANCE = 300e6


def main() -> None:
    """Run and print."""
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    out, model = folder / "out", folder / "m135"
    edgeformer = [sys.executable, "-m", "edgeformer"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    q4 = str(out / "q4")
    commands = {
        "export --precision q4": [[*edgeformer, "export", str(model), "-o", str(out / "direct"), "--precision", "q4"]],
        "quantize rtn + export": [
            [*edgeformer, "quantize", str(model), "-o", q4, "--method", "rtn"],
            [*edgeformer, "export", q4, "-o", str(out / "linked"), "--weights", "link"],
        ],
        "quantize search": [[*edgeformer, "quantize", str(model), "-o", str(out / "search")]],
        "genai builder int4": [[*builder, "-i", str(model), "-o", str(out / "int4"), "-c", str(out / "cache")]],
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, steps in commands.items():
            for step in steps:
                shutil.rmtree(step[step.index("-o") + 1], ignore_errors=True)
            samples = [measure(step) for step in steps]
            results[name].append((sum(s for s, _ in samples), max(m for _, m in samples)))
    base = [statistics.median(x) for x in zip(*results["genai builder int4"], strict=True)]
    print(f"{'':<24}{'wall s':>8} {'(range)':>16} {'peak MB':>9}   builder / this: time, memory")
    for name, samples in results.items():
        seconds, peak = (statistics.median(x) for x in zip(*samples, strict=True))
        low, high = min(s for s, _ in samples), max(s for s, _ in samples)
        spread = f"({low:.2f}-{high:.2f})"
        print(
            f"{name:<24}{seconds:>8.2f} {spread:>16} {peak:>9.0f}   {base[0] / seconds:.2f} x, {base[1] / peak:.2f} x"
        )
    large = folder / "m7b"
    largest = max(s.stored.nbytes for s in load(large).require_weights().sources.values())
    shutil.rmtree(out / "q7b", ignore_errors=True)
    seconds, peak = measure([*edgeformer, "quantize", str(large), "-o", str(out / "q7b"), "--method", "rtn"])
    allowed = (2 * largest + LARGEST_ALLOWANCE) / 1e6
    print(
        f"7B-shaped to q4: {seconds:.1f} s, peak {peak:.0f} MB of {allowed:.0f} MB (2 x {largest / 1e6:.0f} MB + 300 MB)"
    )
    shutil.rmtree(out / "q7b", ignore_errors=True)


if __name__ == "__main__":
    main()
