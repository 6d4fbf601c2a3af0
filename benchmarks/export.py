"""Export as whole processes: `python benchmarks/export.py FOLDER [ROUNDS]` after make_checkpoints.py.

Wall time and peak resident memory (wait4's ru_maxrss) of link, copy and ONNX Runtime GenAI's builder (fp32), interleaved,
and of linking a 7B-shaped checkpoint. Ratios are against the builder.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

from processes import measure


def main() -> None:
    """Run and print."""
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    out, model = folder / "out", folder / "m135"
    edgeformer = [sys.executable, "-m", "edgeformer", "export"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    commands = {
        "link": [*edgeformer, str(model), "-o", str(out / "link"), "--weights", "link"],
        "copy": [*edgeformer, str(model), "-o", str(out / "copy")],
        "genai builder": [*builder, "-i", str(model), "-o", str(out / "builder"), "-c", str(out / "cache")],
        "link, 7B bf16": [*edgeformer, str(folder / "m7b"), "-o", str(out / "link7b"), "--weights", "link"],
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(command[command.index("-o") + 1], ignore_errors=True)
            results[name].append(measure(command))
    base = [statistics.median(x) for x in zip(*results["genai builder"], strict=True)]
    print(f"{'':<16}{'wall s':>8} {'(range)':>16} {'peak MB':>9}   builder / this: time, memory")
    for name, samples in results.items():
        seconds, peak = (statistics.median(x) for x in zip(*samples, strict=True))
        low, high = min(s for s, _ in samples), max(s for s, _ in samples)
        print(
            f"{name:<16}{seconds:>8.2f} {f'({low:.2f} - {high:.2f})':>16} {peak:>9.0f}"
            f"   {base[0] / seconds:.1f} x, {base[1] / peak:.1f} x"
        )
    print("largest tensor of the 135M model: 113 MB")


if __name__ == "__main__":
    main()
