"""What speaks against a row's numbers, found in the numbers themselves. Flags are shown with the row; they don't unrank it."""

from __future__ import annotations

import statistics

from edgeformer.checkpoint.bundle import has_own_bits
from edgeformer.measure.flags import Flag, FlagCode
from edgeformer.measure.noise import NOISY, spread
from edgeformer.measure.row import Row

SLOWER = 1.1
"""How many times fp32's time a quantized row may take before it is flagged: less is noise."""
FALLBACK = 0.95
"""Share of the FLOPs that an execution provider has to claim, for its row to say something about it."""


def row_flags(row: Row, others: list[Row]) -> list[Flag]:
    """Remarks on one row, beside the rows of its shape."""
    if not row.rounds:
        return []
    said: list[Flag] = []
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
        said.append(Flag(FlagCode.THREADS, f"threads: it kept {cpus:.1f} CPUs busy, {row.threads} were asked for"))
    said += _slower_than_fp32(row, others)
    mine = row.facts.get("kv")
    same = [r for r in others if r.plan.precision == row.plan.precision and r.rounds]
    peers = {str(r.facts["kv"]) for r in same if r.facts.get("kv")}
    if mine is not None and len(peers) > 1:
        said.append(Flag(FlagCode.CACHE_DTYPE, f"cache in {mine}, others in {', '.join(sorted(peers - {mine}))}"))
    return said


def _slower_than_fp32(row: Row, others: list[Row]) -> list[Flag]:
    """What a quantized row takes longer for than the same runtime takes in float32: quantization has cost speed there."""
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
