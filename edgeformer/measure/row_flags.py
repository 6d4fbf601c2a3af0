"""What speaks against a row's numbers, found in the numbers themselves. Flags are shown with the row; they don't unrank it."""

from __future__ import annotations

from edgeformer.measure.noise import NOISY, spread
from edgeformer.measure.row import Row

FALLBACK = 0.95
"""Share of the FLOPs that an execution provider has to claim, for its row to say something about it."""


def row_flags(row: Row, others: list[Row]) -> list[str]:
    """Remarks on one row, beside the rows of its shape."""
    if not row.rounds:
        return []
    said = []
    if (share := row.facts.get("provider_flops")) is not None and share < FALLBACK:
        said.append(f"fallback: {row.facts.get('provider')} ran {share:.0%} of the FLOPs, the CPU the rest")
    if row.facts.get("device") == "gpu" and row.facts.get("cache_device") == "cpu":
        said.append("the cache is copied between CPU and accelerator at every step")
    if (wide := spread(row)) is not None and wide > NOISY:
        said.append(f"spread {wide:.0%}")
    if row.settled is False:
        said.append("not settled: warm-up rounds still differed by more than 5 %")
    cpus = row.cpu_per_wall()
    if cpus is not None and cpus > row.threads + 0.5:
        said.append(f"threads: it kept {cpus:.1f} CPUs busy, {row.threads} were asked for")
    mine = row.facts.get("kv")
    same = [r for r in others if r.plan.precision == row.plan.precision and r.rounds]
    peers = {str(r.facts["kv"]) for r in same if r.facts.get("kv")}
    if mine is not None and len(peers) > 1:
        said.append(f"cache in {mine}, others in {', '.join(sorted(peers - {mine}))}")
    return said
