"""Runs rows: reference first, then each row's process (load, warm up, check), then rounds in turn (A B C A B C ...).

Rounds are interleaved so that drift of the machine hits all rows alike. Every row gets the same token ids, exact counts,
greedy decoding, the same threads and the same cache capacity. Shapes (prompt lengths, batches) run one after another: rows
are ranked within a shape, and only one shape's processes hold the model at a time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeformer.bundle import has_own_bits
from edgeformer.measure.process import WorkerFailed, WorkerProcess
from edgeformer.measure.row import Plan, Row
from edgeformer.parity import sample_ids
from edgeformer.spec import Model
from edgeformer.verdict import FAIL

SETTLE_S = 0.1
"""Pause before a round: thread pools of the row before spin for a while after their last step."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What every row runs: `gen` decode steps after its prompt, `rounds` times, with `threads` threads.

    Each of `prompts` (tokens) and, for encoders, `batches` makes a row. `provider` is ONNX Runtime's execution provider.
    `limit_s` ends a row that doesn't answer.
    """

    prompts: tuple[int, ...] = (128,)
    gen: int = 64
    rounds: int = 5
    threads: int = 1
    batches: tuple[int, ...] = (1,)
    provider: str = "CPUExecutionProvider"
    seed: int = 0
    limit_s: float = 900.0


@dataclass
class Run:
    """The rows of a run; `interrupted` if Ctrl-C ended it: they then hold what was measured before."""

    rows: list[Row]
    interrupted: bool = False


@dataclass
class _Bench:
    spec: Model
    settings: Settings
    reference: tuple[str, dict[str, Any]] | None
    scratch: Path
    report: Report

    def request(self, plan: Plan) -> dict[str, Any]:
        prompt = [int(i) for i in sample_ids(self.spec.vocab, plan.prompt, self.settings.seed)]
        return {"prompt": prompt, "gen": self.settings.gen, "batch": plan.batch}


def run(
    plans: list[Plan],
    spec: Model,
    settings: Settings,
    *,
    reference: tuple[str, dict[str, Any]] | None,
    report: Report = lambda _: None,
) -> Run:
    """Measure every plan, once per shape of the settings.

    Args:
        plans: what to run.
        spec: the model they all run.
        settings: lengths, rounds, threads.
        reference: (MODEL, load options) of the original to check against, or None: every row is then unchecked.
        report: told what is happening.
    """
    batches = settings.batches if spec.task != "text-generation" else (1,)
    done = Run([])
    with tempfile.TemporaryDirectory(prefix="edgeformer-bench-") as scratch:
        bench = _Bench(spec, settings, reference, Path(scratch), report)
        for batch in batches:
            for prompt in settings.prompts:
                shape = [Row(replace(plan, prompt=prompt, batch=batch), settings.threads) for plan in plans]
                done.rows += shape
                try:
                    _run_shape(shape, bench)
                except KeyboardInterrupt:
                    done.interrupted = True
                    return done
    return done


def _run_shape(rows: list[Row], bench: _Bench) -> None:
    settings, workers = bench.settings, {}
    try:
        references = _references(rows, bench)
        for row in rows:
            bench.report(f"{row.plan.label}: load, warm up, check")
            worker = workers[id(row)] = WorkerProcess(settings.threads)
            _guarded(row, lambda row=row, worker=worker: _prepare(row, worker, bench, references))
        for n in range(settings.rounds):
            for row in rows:
                if row.status == "ok":
                    bench.report(f"round {n + 1}/{settings.rounds}: {row.plan.label}")
                    time.sleep(SETTLE_S)
                    _guarded(row, lambda row=row: _round(row, workers[id(row)], bench))
    finally:
        for worker in workers.values():
            worker.close()


@dataclass
class _Reference:
    """What rows must answer: the file, what made it, and for quantized weights whether they are the original's."""

    file: Path
    runtime: str
    weights: dict[str, Any] | None


def _judged_by(plan: Plan) -> tuple[str, str]:
    """What rows share a reference: the precision of their weights. Quantized ones have bits of their own."""
    return (plan.precision, plan.source if has_own_bits(plan.precision) else "")


def _references(rows: list[Row], bench: _Bench) -> dict[tuple[str, str], _Reference]:
    """The references of rows that count, by `_judged_by`."""
    made: dict[tuple[str, str], _Reference] = {}
    if bench.reference is None:
        return made
    original, load_options = bench.reference
    for key in dict.fromkeys(_judged_by(row.plan) for row in rows if row.plan.ranked):
        precision, own = key
        bench.report(f"reference, weights as {precision}")
        same = [row for row in rows if _judged_by(row.plan) == key]
        for row in same:
            row.reference = f"weights as {precision}"
        plan, worker = same[0].plan, WorkerProcess(bench.settings.threads)
        file = bench.scratch / f"{len(made)}-{plan.batch}-{plan.prompt}.npz"
        judged = {"source": original, "load_options": load_options, "precision": precision}
        if own:  # its own bits, dequantized; and are they the original's?
            judged = {"source": own, "load_options": {}, "precision": "fp32"}
            judged |= {"original": original, "original_options": load_options}
        try:
            found = worker.ask(
                "reference",
                bench.settings.limit_s,
                threads=bench.settings.threads,
                file=str(file),
                **judged,
                **bench.request(plan),
            )
            made[key] = _Reference(file, found["runtime"], found["weights"])
            for row in same:
                row.reference = f"{found['runtime']} fp32, weights as {precision}"
        except WorkerFailed as e:
            for row in same:
                row.checks = [{"name": "reference", "verdict": "unchecked", "note": f"no reference: {e}"}]
        finally:
            worker.close()
    return made


def _guarded(row: Row, action: Callable[[], None]) -> None:
    try:
        action()
    except WorkerFailed as e:
        row.status, row.error = "failed", str(e)


def _prepare(row: Row, worker: WorkerProcess, bench: _Bench, references: dict[tuple[str, str], _Reference]) -> None:
    plan, settings, request = row.plan, bench.settings, bench.request(row.plan)
    limit = settings.limit_s
    capacity = plan.prompt + settings.gen if bench.spec.task == "text-generation" else None
    opened = worker.ask(
        "open",
        limit,
        runtime=plan.runtime,
        source=plan.source,
        opens=plan.opens,
        load_options=plan.load_options,
        options={
            "threads": settings.threads,
            "capacity": capacity,
            "precision": plan.compute if has_own_bits(plan.precision) else plan.precision,
            "provider": settings.provider,
        },
    )
    row.load_s, row.versions, row.facts = opened["load_s"], opened["versions"], opened["facts"]
    row.first = worker.ask("round", limit, **request)
    row.discarded = worker.ask("warmup", limit, **request)["rounds"]
    memory = worker.ask("memory", limit)  # before the check, which holds more than the runtime does
    row.peak_rss_bytes, row.rss_source = memory["peak_rss_bytes"], memory["rss_source"]
    if plan.ranked and (judge := references.get(_judged_by(plan))) is not None:
        checked = worker.ask("check", limit, file=str(judge.file), compute=plan.compute, reference=judge.runtime)
        row.verdict, row.checks = checked["verdict"], checked["checks"]
        if judge.weights is not None:
            row.checks = [judge.weights, *row.checks]
            row.verdict = FAIL if judge.weights["verdict"] == FAIL else row.verdict


def _round(row: Row, worker: WorkerProcess, bench: _Bench) -> None:
    row.rounds.append(worker.ask("round", bench.settings.limit_s, **bench.request(row.plan)))
