"""What rows must answer, computed in the same run by a process of its own and left in a file for the rows' processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.bundle import has_own_bits
from edgeformer.inference.lookup import get
from edgeformer.measure.process import WorkerFailed, WorkerProcess
from edgeformer.measure.row import Plan, Row
from edgeformer.measure.settings import Settings

JudgeKey = tuple[str, str, bool]


@dataclass
class Judge:
    """What rows must answer: the file, what made it, for quantized weights whether they are the original's, and how far what
    these weights say is from what the original's say (`kl_mean` in nats, `top1`)."""

    file: Path
    runtime: str
    weights: dict[str, Any] | None
    quality: dict[str, Any]

    @staticmethod
    def key(plan: Plan) -> JudgeKey:
        """What rows share: the precision of their weights (quantized ones have bits of their own), and whether servers."""
        own = plan.source if has_own_bits(plan.precision) else ""
        return (plan.precision, own, get(plan.runtime)[0].served)


def make_references(
    rows: list[Row],
    settings: Settings,
    reference: tuple[str, dict[str, Any]] | None,
    scratch: Path,
    request: Callable[..., dict[str, Any]],
    report: Callable[[str], None],
) -> dict[JudgeKey, Judge]:
    """The judges of rows that count, by `Judge.key`; every row is told who judges it."""
    made: dict[JudgeKey, Judge] = {}
    if reference is None:
        return made
    original, load_options = reference
    for key in dict.fromkeys(Judge.key(row.plan) for row in rows if row.plan.ranked):
        precision, own, served = key
        report(f"reference, weights as {precision}")
        same = [row for row in rows if Judge.key(row.plan) == key]
        for row in same:
            row.reference = f"weights as {precision}"
        shape, worker = same[0].shape, WorkerProcess(settings.threads, scratch)
        file = scratch / f"{len(list(scratch.iterdir()))}.npz"
        judged: dict[str, Any] = {"source": original, "load_options": load_options, "precision": precision}
        if own:  # its own bits, dequantized; and are they the original's?
            judged = {"source": own, "load_options": {}, "precision": "fp32"}
            judged |= {"check_weights": True}
        try:
            found = worker.ask(
                "reference",
                settings.limit_s,
                settings.limit_s,
                threads=settings.threads,
                file=str(file),
                original=original,
                original_options=load_options,
                **judged,
                **request(shape, served),
            )
            made[key] = Judge(file, found["runtime"], found["weights"], found["quality"])
            for row in same:
                row.reference = f"{found['runtime']} fp32, weights as {precision}"
        except WorkerFailed as e:
            for row in same:
                row.checks = [{"name": "reference", "verdict": "unchecked", "note": f"no reference: {e}"}]
        finally:
            worker.close()
    return made
