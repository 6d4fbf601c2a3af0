"""Whole processes, timed."""

from __future__ import annotations

import os
import subprocess
import sys
import time


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MB of a process. It is started from a small shell, whose peak it may inherit but never exceeds."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / (1 if sys.platform != "darwin" else 1024) * 1024 / 1e6
