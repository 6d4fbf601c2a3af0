"""Machine facts needed to interpret measurements. Unknown is None, never a guess."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import psutil

from edgeformer.inference.threads import usable_cpus


def cpu_name() -> str:
    """The CPU's marketing name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        import subprocess

        out = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return out.stdout.strip() or platform.processor()
    return platform.processor() or platform.machine()


def facts() -> dict[str, Any]:
    """Machine facts as one flat record, collected once per run."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    load = psutil.getloadavg()[0] if hasattr(psutil, "getloadavg") else None
    return {
        "cpu_info": cpu_name(),
        "machine": platform.machine(),
        "cpu_physical_cores": psutil.cpu_count(logical=False),
        "cpu_usable": usable_cpus(),
        "ram_bytes": psutil.virtual_memory().total,
        "os_name": platform.system(),
        "os_version": platform.release(),
        "python": platform.python_version(),
        "load_average_before": load,
        "power_source": None if battery is None else "mains" if battery.power_plugged else "battery",
    }
