"""Intel's and AMD's RAPL counters of whole CPU packages, if Linux allows reading them (often root only).

Follows Documentation/power/powercap of the Linux kernel: `energy_uj` counts microjoules and wraps at `max_energy_range_uj`.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class Rapl:
    """Sum over all packages."""

    source = "RAPL package"

    def __init__(self, packages: list[Path]):
        self.packages = packages
        self._last = [self._read(p) for p in packages]
        self._ranges = [int((p / "max_energy_range_uj").read_text()) for p in packages]
        self._total = 0

    @staticmethod
    def _read(package: Path) -> int:
        return int((package / "energy_uj").read_text())

    def joules(self) -> float:
        """Energy since this meter was opened."""
        now = [self._read(p) for p in self.packages]
        for last, value, span in zip(self._last, now, self._ranges, strict=True):
            self._total += value - last if value >= last else value - last + span
        self._last = now
        return self._total / 1e6


def open_meter(root: Path = ROOT) -> Rapl | None:
    """Open a meter if there are readable packages, else return None."""
    try:
        domains = [p for p in sorted(root.glob("intel-rapl:*")) if p.name.count(":") == 1]
        packages = [p for p in domains if (p / "name").read_text().startswith("package")]  # psys would count them twice
        return Rapl(packages) if packages else None
    except (OSError, ValueError):  # no permission to read the counters
        return None
