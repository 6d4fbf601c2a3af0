"""Flags derived from a row's own numbers. Flags are shown with the row; they don't exclude it from the ranking."""

from __future__ import annotations

import statistics

from edgeformer.checkpoint.bundle import has_own_bits
from edgeformer.measure.flags import Flag, FlagCode
from edgeformer.measure.noise import NOISY, spread
from edgeformer.measure.row import Row

SLOWER = 1.1
"""Factor by which a quantized row may be slower than fp32 before it is flagged: smaller differences are noise."""
FALLBACK = 0.95
"""Share of the FLOPs that an execution provider must run for the row to be representative of it."""


def row_flags(row: Row, others: list[Row]) -> list[Flag]:
    """Flags of one row; `others` are the rows of its shape."""
    if not row.rounds:
        return []
    said: list[Flag] = []
    if not row.plan.timed:
        said.append(Flag(FlagCode.REFERENCE, "a reference interpreter: verified, and its time is no result"))
    if (share := row.facts.get("provider_flops")) is not None and share < FALLBACK:
        said.append(
            Flag(
                FlagCode.FALLBACK,
                f"fallback: {row.facts.get('provider')} ran {share:.0%} of the FLOPs, the CPU the rest",
            )
        )
    if row.facts.get("device") == "gpu" and row.facts.get("cache_device") == "cpu":
        said.append(Flag(FlagCode.CACHE_COPIED, "the cache is copied between CPU and accelerator at every step"))
    if (wide := spread(row)) is not None and wide > NOISY:
        said.append(Flag(FlagCode.SPREAD, f"spread {wide:.0%}"))
    if row.settled is False:
        said.append(Flag(FlagCode.NOT_SETTLED, "not settled: warm-up rounds still differed by more than 5 %"))
    cpus = row.cpu_per_wall()
    if cpus is not None and cpus > row.threads + 0.5:
        said.append(Flag(FlagCode.THREADS, f"threads: kept {cpus:.1f} CPUs busy, {row.threads} requested"))
    said += _slower_than_fp32(row, others)
    mine = row.facts.get("kv")
    same = [r for r in others if r.plan.precision == row.plan.precision and r.rounds]
    peers = {str(r.facts["kv"]) for r in same if r.facts.get("kv")}
    if mine is not None and len(peers) > 1:
        said.append(Flag(FlagCode.CACHE_DTYPE, f"KV cache in {mine}, others in {', '.join(sorted(peers - {mine}))}"))
    return said


def _slower_than_fp32(row: Row, others: list[Row]) -> list[Flag]:
    """Flags for prefill or decode of a quantized row that is slower than the same runtime's fp32 row."""
    if not has_own_bits(row.plan.precision):
        return []
    plain = next(
        (r for r in others if r.plan.runtime == row.plan.runtime and r.plan.precision == "fp32" and r.rounds), None
    )
    if plain is None:
        return []
    said: list[Flag] = []
    for name, ours, theirs in (
        ("decode", row.decode_medians_ns(), plain.decode_medians_ns()),
        ("prefill", row.prefill_medians_ns(), plain.prefill_medians_ns()),
    ):
        if ours and theirs and (ratio := statistics.median(ours) / statistics.median(theirs)) > SLOWER:
            said.append(Flag(FlagCode.SLOWER_THAN_FP32, f"{name} {ratio:.1f} x slower than its own fp32"))
    return said
