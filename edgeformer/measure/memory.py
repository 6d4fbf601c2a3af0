"""This process's peak memory, from the operating system's own counters; the counter is named with the number.

Resident bytes include memory-mapped files, so rows that map their weights and rows that read them aren't comparable by resident
bytes alone: records also hold `weights_mmap` and the weight files' bytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any


def peak_memory() -> dict[str, Any]:
    """Peak resident bytes and their source; on macOS also the peak footprint, which the system charges to the process.

    Not `ru_maxrss` on Linux: it survives exec, so a child starts with its parent's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return {
                    "peak_rss_bytes": int(line.split()[1]) * 1024,
                    "rss_source": "VmHWM",
                    "peak_footprint_bytes": None,
                }
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        peak = psutil.Process().memory_info().peak_wset  # type: ignore[attr-defined]
        return {"peak_rss_bytes": peak, "rss_source": "peak_wset", "peak_footprint_bytes": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "rss_source": "ru_maxrss",
        "peak_footprint_bytes": _peak_footprint() if sys.platform == "darwin" else None,
    }


class _RUsage(ctypes.Structure):
    """`struct rusage_info_v4` of macOS's <sys/resource.h>: 16 bytes and 35 counters, the 29th of which is the peak footprint."""

    _fields_ = (("uuid", ctypes.c_uint8 * 16), ("counters", ctypes.c_uint64 * 35))


_PEAK_FOOTPRINT, _FLAVOR = 28, 4


def _peak_footprint() -> int | None:
    """`ri_lifetime_max_phys_footprint` of this process. Written from the header, never run on a Mac."""
    usage = _RUsage()
    try:
        library = ctypes.CDLL("/usr/lib/libSystem.dylib")
        failed = library.proc_pid_rusage(os.getpid(), _FLAVOR, ctypes.byref(usage))
    except (OSError, AttributeError):
        return None
    return None if failed else int(usage.counters[_PEAK_FOOTPRINT])
