"""NVIDIA's counter `nvmlDeviceGetTotalEnergyConsumption` (millijoules since the driver was loaded; Volta and later), of all GPUs.

Needs the package nvidia-ml-py. Written from NVML's documentation; it has never run on a GPU.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


class Nvml:
    """Sum over all GPUs."""

    source = "NVML total energy"

    def __init__(self, library: ModuleType, devices: list[Any]):
        self.library, self.devices = library, devices

    def joules(self) -> float:
        """Energy since the driver was loaded."""
        return sum(self.library.nvmlDeviceGetTotalEnergyConsumption(device) for device in self.devices) / 1e3


def open_meter() -> Nvml | None:
    """Open a meter if there are GPUs with an energy counter, else return None."""
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        meter = Nvml(pynvml, devices)
        if devices:
            meter.joules()
        return meter if devices else None
    except Exception:  # no package, no driver, no counter: NVML has an error class for each
        return None
