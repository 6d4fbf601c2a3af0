"""Energy from the machine's hardware counters, one file per counter in `meters/`. Without a counter it is None, never zero.

A counter is read before and after many consecutive rounds, since most update at most once per millisecond. Idle power is
measured first and stored, not subtracted: how much of it to attribute to a row is the reader's choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from edgeformer import discover
from edgeformer.measure.timed import Round

PACKAGE = "edgeformer.measure.meters"
IDLE_S = 2.0


class Meter(Protocol):
    """An energy counter."""

    source: str

    def joules(self) -> float:
        """Energy since a fixed reference point."""
        ...


def find_meter() -> Meter | None:
    """The first counter available on this machine."""
    for name, module in discover.each(PACKAGE):
        with discover.sparing(PACKAGE, name):
            if (meter := discover.function(module, "open_meter")()) is not None:
                return meter
    return None


def of_rounds(
    prefill: Callable[[], Round],
    whole: Callable[[], Round],
    window_s: float,
    meter: Meter | None = None,
    fill: Callable[[], Round] | None = None,
) -> dict[str, Any]:
    """Joules per prefill (or encoder call) and per round's decode steps, and idle power in watts.

    Prefills alone run for one window, then whole rounds for another; decode energy is the difference. `fill` brings the cache
    to its depth before a prefill; its energy is subtracted. All three must run without a lead-in, since the counter also sees
    untimed work.

    Returns:
        `energy_source`, `energy_j_prefill`, `energy_j_decode`, `idle_w`; all None without a counter.
    """
    meter = meter or find_meter()
    if meter is None:
        return dict.fromkeys(("energy_source", "energy_j_prefill", "energy_j_decode", "idle_w"))
    e0, t0 = meter.joules(), time.perf_counter()
    time.sleep(IDLE_S)
    idle = (meter.joules() - e0) / (time.perf_counter() - t0)
    first, decoded = _joules_each(prefill, window_s, meter), None
    last = whole()
    if last.decode_ns:
        decoded = _positive(_joules_each(whole, window_s, meter) - first)
    if fill is not None:
        first -= _joules_each(fill, window_s, meter)
    prefilled = _positive(first / max(len(last.prefill_ns), 1))
    return {"energy_source": meter.source, "energy_j_prefill": prefilled, "energy_j_decode": decoded, "idle_w": idle}


def _positive(joules: float) -> float | None:
    """The difference of two windows, or None if noise exceeds the measured quantity."""
    return joules if joules > 0 else None


def _joules_each(run: Callable[[], Round], window_s: float, meter: Meter) -> float:
    e0, t0, count = meter.joules(), time.perf_counter(), 0
    while not count or time.perf_counter() - t0 < window_s:
        run()
        count += 1
    return (meter.joules() - e0) / count
