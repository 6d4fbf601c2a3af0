"""Machine state before and after a measurement, and flags for conditions that make numbers unreliable. Unknown is None."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from edgeformer.inference.threads import usable_cpus
from edgeformer.measure.flags import Flag, FlagCode

BUSY = 0.2
"""CPUs that other processes may keep busy before a measurement is flagged."""
_SYS = Path("/sys")


def thermal(root: Path = _SYS) -> dict[str, Any]:
    """The hottest sensor in °C and the number of core throttling events (Linux), or macOS's thermal warning."""
    if sys.platform == "darwin":
        return {"celsius": None, "throttled": None, "warning": _pmset_thermal()}
    found = []
    for zone in root.glob("class/thermal/thermal_zone*/temp"):
        with contextlib.suppress(OSError, ValueError):  # a listed sensor may fail to read
            found.append(int(zone.read_text()) / 1000)
    counts = []
    for file in root.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"):
        with contextlib.suppress(OSError, ValueError):
            counts.append(int(file.read_text()))
    return {"celsius": max(found, default=None), "throttled": sum(counts) if counts else None, "warning": None}


def _pmset_thermal() -> str | None:
    """`pmset -g therm`'s CPU speed limit if it is below 100 %, "" if there is no limit, None if it can't be read."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, timeout=10)
        for line in done.stdout.splitlines():
            if "CPU_Speed_Limit" in line and line.split("=")[-1].strip() != "100":
                return line.strip()
        return ""
    return None


def power(root: Path = _SYS) -> dict[str, Any]:
    """Power source, CPU frequency governor and low power mode."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    governor = None
    with contextlib.suppress(OSError):
        governor = (root / "devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    low = None
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["pmset", "-g"], capture_output=True, text=True, timeout=10)
            values = [line.split()[-1] for line in done.stdout.splitlines() if "lowpowermode" in line]
            low = bool(int(values[0])) if values and values[0].isdigit() else None
    source = None if battery is None else "mains" if battery.power_plugged else "battery"
    return {"power_source": source, "governor": governor, "low_power_mode": low}


class Watch:
    """Measures how many CPUs other processes (not this one, nor its workers) kept busy. `elapsed`: observed time, in seconds."""

    def __init__(self) -> None:
        self._others = self.elapsed = 0.0
        self.steal = 0.0

    def start(self, pids: list[int]) -> None:
        """Start watching."""
        self._pids, self._t0 = pids, time.perf_counter()
        self._busy0, self._ours0, self._steal0 = _busy(), _used(pids), _steal()

    def stop(self) -> None:
        """Stop watching, and add to the totals."""
        wall = time.perf_counter() - self._t0
        ours = _used(self._pids) - self._ours0
        self._others += max(_busy() - self._busy0 - ours, 0.0)
        self.steal += _steal() - self._steal0
        self.elapsed += wall

    def other_cpus(self) -> float | None:
        """Average number of CPUs that other processes kept busy; None if less than 0.5 s was observed."""
        return self._others / self.elapsed if self.elapsed > 0.5 else None


def _busy() -> float:
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def _steal() -> float:
    return getattr(psutil.cpu_times(), "steal", 0.0)


def _used(pids: list[int]) -> float:
    total = sum(psutil.Process().cpu_times()[:2])
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            total += sum(process.cpu_times()[:2])
            total += sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return total


@dataclass
class Conditions:
    """The conditions a shape's rows were measured under."""

    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    other_cpus: float | None = None
    steal_s: float | None = None
    elapsed_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def flags(self) -> list[Flag]:
        """Flags for conditions that make the numbers unreliable."""
        said: list[Flag] = []
        if self.other_cpus is not None and self.other_cpus > BUSY:
            said.append(
                Flag(FlagCode.BUSY, f"busy: other processes kept {self.other_cpus:.1f} of {usable_cpus()} CPUs busy")
            )
        if self.elapsed_s and self.steal_s and self.steal_s > 0.05 * self.elapsed_s:
            said.append(
                Flag(
                    FlagCode.BUSY,
                    f"busy: the hypervisor took {self.steal_s / self.elapsed_s:.0%} of a CPU (steal time)",
                )
            )
        before, after = self.before.get("throttled"), self.after.get("throttled")
        if before is not None and after is not None and after > before:
            said.append(Flag(FlagCode.THROTTLED, f"throttled: {after - before} thermal throttling events"))
        if self.after.get("warning"):
            said.append(Flag(FlagCode.THROTTLED, f"throttled: {self.after['warning']}"))
        if self.before.get("power_source") != self.after.get("power_source"):
            said.append(Flag(FlagCode.POWER, "power: the power source changed during the measurement"))
        if self.after.get("power_source") == "battery":
            said.append(Flag(FlagCode.POWER, "power: on battery"))
        if self.after.get("low_power_mode"):
            said.append(Flag(FlagCode.POWER, "power: low power mode is on"))
        return said


def state() -> dict[str, Any]:
    """Thermal and power state now."""
    return thermal() | power()
