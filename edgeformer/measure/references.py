"""Reference outputs for rows, computed in the same run by a separate process and saved to a file for the workers."""

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
    """Reference outputs: their file, the runtime that made them, for quantized weights the check that they come from the
    original, and how far these weights' outputs are from the original's (`kl_mean` in nats, `top1`)."""

    file: Path
    runtime: str
    weights: dict[str, Any] | None
    quality: dict[str, Any]

    @staticmethod
    def key(plan: Plan) -> JudgeKey:
        """The key of rows that share a reference: weight precision, source of quantized weights, and whether it's a server."""
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
    """Compute the judges of ranked rows, by `Judge.key`, and set each row's `reference`."""
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
        if own:  # dequantize its own weights, and check that they come from the original
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
