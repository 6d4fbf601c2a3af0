"""Groups of rows whose models fit into memory at once; rounds are interleaved within a group."""

from __future__ import annotations

from pathlib import Path

import psutil

from edgeformer.inference.lookup import get
from edgeformer.measure.row import Row

SHARE, OVERHEAD = 0.8, 300_000_000
"""Usable share of the memory available now, and bytes of a process besides its model."""


def model_bytes(source: str) -> int:
    """Bytes of a source's files: about what a runtime keeps in memory."""
    path = Path(source)
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else 0


def groups_that_fit(rows: list[Row], available: int | None = None) -> list[list[int]]:
    """Row indices, grouped in order so that each group fits into memory; one group if all rows fit.

    A 16-bit checkpoint takes twice its size in a runtime that computes in float32. A row and its twin share a group.
    """
    free = SHARE * (psutil.virtual_memory().available if available is None else available)
    groups: list[list[int]] = [[]]
    home = groups[0]
    used = 0.0
    twin = next((n for n, row in enumerate(rows) if row.plan.again), None)
    for n, row in enumerate(rows):
        plan = row.plan
        if plan.again:
            continue
        twins = twin is not None and (plan.runtime, plan.source) == (rows[twin].plan.runtime, rows[twin].plan.source)
        served = get(plan.runtime)[0].served
        size = 0.0 if served else (2.0 if plan.opens == "checkpoint" else 1.2) * model_bytes(plan.source) + OVERHEAD
        need = 2 * size if twins else size
        if groups[-1] and used + need > free:
            groups.append([])
            used = 0.0
        groups[-1].append(n)
        used += need
        if twins:
            home = groups[-1]
    if twin is not None:
        home.append(twin)  # last, so that twins are at opposite ends of a round
    return groups
