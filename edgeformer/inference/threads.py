"""The default number of compute threads: one per physical core that this process may use."""

from __future__ import annotations

import os

import psutil


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores this process may use."""
    return max(1, min(psutil.cpu_count(logical=False) or usable_cpus(), usable_cpus()))
