"""Judging a kernel in the emulator: every case, several schedules."""

from __future__ import annotations

import mlx.core as mx

from edgeformer.backends.mlx import metal
from edgeformer.backends.mlx.metal._kernel import FLOATS, Kernel, built
from metal_emulator.bridge import Emulator
from metal_emulator.program import EmulationError

ORDERS = (0, 1, 2, 3)
"""Forward, backward, and two random schedules."""


def emulated(name: str, order: int = 0, source: str | None = None) -> Kernel:
    """A kernel that is launched in the emulator; `source` stands in for its own."""
    kernel = metal.get(name)
    kernel.launch = Emulator(built(type(kernel), source), order)
    return kernel


def fault(name: str, source: str, dtypes: tuple = FLOATS) -> str | None:
    """How a source is found to be wrong: `compile`, `rule` (of barriers, lanes, memory), `wrong` or `schedule`; None if it
    isn't."""
    for dtype in dtypes:
        for case in metal.get(name).cases(dtype):
            found = []
            for order in ORDERS:
                try:
                    outputs = case.call(emulated(name, order, source))
                except EmulationError as e:
                    return "compile" if "compile" in str(e) else "rule"
                found.append(outputs)
            same = all(
                mx.array_equal(a, b, equal_nan=True)
                for other in found[1:]
                for a, b in zip(found[0], other, strict=True)
            )
            if not same:
                return "schedule"
            if case.error(found[0]) > 1:
                return "wrong"
    return None
