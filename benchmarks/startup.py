"""What starting costs: `python benchmarks/startup.py [ROUNDS]`. Medians of whole processes, interleaved."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def main() -> None:
    """Run and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    commands = {
        "bare interpreter": [sys.executable, "-c", "pass"],
        "import edgeformer": [sys.executable, "-c", "import edgeformer"],
        "edgeformer --help": [sys.executable, "-m", "edgeformer", "--help"],
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            samples[name].append((time.perf_counter() - start) * 1e3)
    base = statistics.median(samples["bare interpreter"])
    for name, times in samples.items():
        median = statistics.median(times)
        print(
            f"{name:<20}{median:7.1f} ms ({min(times):.1f} - {max(times):.1f}), {median - base:6.1f} over the interpreter"
        )


if __name__ == "__main__":
    main()
