"""Apple silicon's IOReport counters of CPU, GPU, Neural Engine and memory, through zeus-apple-silicon (no root needed).

Written from that package's documentation; it has never run on a Mac.
"""

from __future__ import annotations

import sys
from typing import Any


class AppleSilicon:
    """Sum over the chip's energy counters."""

    source = "IOReport (CPU, GPU, ANE, DRAM)"

    def __init__(self, monitor: Any):  # an AppleEnergyMonitor, of a package that only Macs have
        self.monitor, self._total = monitor, 0.0
        monitor.begin_window("edgeformer")

    def joules(self) -> float:
        """Energy since this meter was opened."""
        made = self.monitor.end_window("edgeformer")
        self.monitor.begin_window("edgeformer")
        parts = [getattr(made, name, None) for name in ("cpu_total_mj", "gpu_mj", "ane_mj", "dram_mj")]
        self._total += sum(part for part in parts if part is not None) / 1e3
        return self._total


def open_meter() -> AppleSilicon | None:
    """Open a meter on a Mac with zeus-apple-silicon installed, else return None."""
    if sys.platform != "darwin":
        return None
    try:
        from zeus_apple_silicon import AppleEnergyMonitor  # type: ignore[import-not-found]

        return AppleSilicon(AppleEnergyMonitor())
    except Exception:  # no package, or a chip whose counters it can't read
        return None
