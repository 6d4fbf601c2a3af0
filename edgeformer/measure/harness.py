"""Runs rows: reference first, then each row's process (load, warm up, check), then rounds in turn (A B C, C B A, ...).

Rounds are interleaved so that machine drift affects all rows alike, and one row runs twice to measure the noise. Every row gets
the same token ids, exact token counts, greedy decoding, the same threads and the same cache capacity. Shapes run one after
another: rows are ranked within a shape, and only one shape's processes hold the model at a time.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.bundle import has_own_bits
from edgeformer.errors import InputError
from edgeformer.files.scratch import temporary_folder
from edgeformer.inference.lookup import get
from edgeformer.inference.runtime import Options
from edgeformer.measure.conditions import Conditions, Watch, state
from edgeformer.measure.flags import Flag, FlagCode
from edgeformer.measure.journal import Journal
from edgeformer.measure.memory_groups import groups_that_fit
from edgeformer.measure.noise import Noise, of_twins
from edgeformer.measure.process import WorkerFailed, WorkerLate, WorkerProcess
from edgeformer.measure.references import Judge, JudgeKey, make_references
from edgeformer.measure.row import Plan, Row, Shape
from edgeformer.measure.row_flags import row_flags
from edgeformer.measure.settings import Settings
from edgeformer.spec import Model
from edgeformer.spec.task import Task
from edgeformer.verification.verdict import FAIL

SETTLE_S = 0.1
"""Pause before a round: the previous row's thread pools keep spinning for a while after their last step."""
ENERGY_WINDOW_S = 10.0

Report = Callable[[str], None]


@dataclass
class ShapeResult:
    """The rows of one shape, their noise (in the ranking metric and in prefill), and the machine's conditions."""

    shape: Shape
    rows: list[Row]
    noise: Noise | None = None
    prefill_noise: Noise | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)


@dataclass
class Run:
    """Results, shape by shape; `interrupted` if Ctrl-C ended the run, which then holds what was measured until then.

    A resumed run keeps its `run_id`. `notes` are further messages for the user.
    """

    shapes: list[ShapeResult]
    run_id: str = ""
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for shape in self.shapes for row in shape.rows]


@dataclass
class _Bench:
    spec: Model
    settings: Settings
    reference: tuple[str, dict[str, Any]] | None
    scratch: Path
    report: Report
    journal: Journal | None
    number: int = 0

    def request(self, shape: Shape, served: bool = False) -> dict[str, Any]:
        """Arguments of a worker's round. Each client of a server has its own prompt, as each sequence of a batch does."""
        count = shape.concurrency if served else shape.batch
        ids = self.settings.prompts_of(self.spec, count, shape.depth + shape.prompt)
        return {"prompt": ids.tolist(), "gen": shape.gen, "depth": shape.depth}


def run(
    plans: list[Plan],
    spec: Model,
    settings: Settings,
    *,
    reference: tuple[str, dict[str, Any]] | None,
    report: Report = lambda _: None,
    journal: Journal | None = None,
    measured: Callable[[Run], bool | None] = lambda _: None,
) -> Run:
    """Measure every plan, once per shape of the settings.

    Args:
        plans: what to run.
        spec: the model they all run.
        settings: lengths, rounds, threads.
        reference: (MODEL, load options) of the original to check against, or None: every row is then unchecked.
        report: called with progress messages.
        journal: records events as they happen, and restores earlier measurements.
        measured: called with the run after every shape; False means it could not be saved, so the journal is kept.

    Raises:
        InputError: no runtime supports any of the shapes.
    """
    done = Run([], journal.run_id if journal else uuid.uuid4().hex)
    if spec.task != Task.TEXT_GENERATION and (any(settings.depths) or max(settings.concurrency) > 1):
        done.notes.append("depths and concurrency apply to decoders only; they are ignored")
    finished, kept = False, True
    try:
        with temporary_folder() as scratch:
            bench = _Bench(spec, settings, reference, scratch, report, journal)
            for bench.number, shape in enumerate(settings.shapes(spec)):
                fitting = [plan for plan in plans if _fits(plan, shape, spec, done.notes)]
                rows = [Row(plan, shape, settings.threads) for plan in _with_twin(fitting, settings)]
                if not rows:
                    done.notes.append(f"no rows for {shape.text()}: no runtime here supports this shape")
                    continue
                result = ShapeResult(shape, rows)
                done.shapes.append(result)
                try:
                    _run_shape(result, bench)
                except KeyboardInterrupt:
                    done.interrupted = True
                    return done
                finally:
                    _judge(result)
                kept = measured(done) is not False
        if not done.shapes:
            raise InputError("; ".join(dict.fromkeys(done.notes)) or "there is nothing to measure")
        finished = kept
    finally:
        if journal is not None:
            if journal.broken is not None:
                done.notes.append(journal.broken)
            journal.close(finished=finished)
    return done


def _with_twin(plans: list[Plan], settings: Settings) -> list[Plan]:
    """The plans plus a second copy of the first ranked one, at the other end of a round."""
    first = next((p for p in plans if p.ranked), None)
    if not settings.twice or settings.rounds < 2 or first is None:
        return plans
    return [*plans, replace(first, again=True, label=f"{first.label or first.runtime} again")]


def _fits(plan: Plan, shape: Shape, spec: Model, notes: list[str]) -> bool:
    """Whether a plan supports a shape: only servers take concurrency; only others take depth, and batches if they can."""
    runtime, variant = get(plan.runtime)
    if runtime.served:
        return shape.batch == 1 and shape.depth == 0
    if shape.concurrency > 1:
        return False
    reason = runtime.refuses(spec, Options(batch=shape.batch, variant=variant)) if shape.batch > 1 else None
    if reason is not None:
        notes.append(f"no row for {plan.label} with a batch of {shape.batch}: {reason}")
    return reason is None


def _run_shape(result: ShapeResult, bench: _Bench) -> None:
    rows, shape, journal = result.rows, result.shape, bench.journal
    if journal is not None:
        for n, row in enumerate(rows):
            journal.restore((bench.number, n), row)
        if (known := journal.finished(bench.number)) is not None:
            result.conditions, result.flags = known["state"], [Flag.of(f) for f in known["flags"]]
            return
    watch, conditions = Watch(), Conditions(before=state())
    groups = groups_that_fit(rows)
    if len(groups) > 1:
        text = f"not interleaved: {len(rows)} rows don't fit into memory at once, so they ran in {len(groups)} groups"
        result.flags.append(Flag(FlagCode.NOT_INTERLEAVED, text))
    for group in groups:
        _run_group([(n, rows[n]) for n in group], bench, watch)
    conditions.after = state()
    conditions.other_cpus, conditions.elapsed_s, conditions.steal_s = watch.other_cpus(), watch.elapsed, watch.steal
    result.conditions = conditions.as_dict()
    result.flags += conditions.flags()
    if journal is not None:
        flags = [flag.as_dict() for flag in result.flags]
        journal.add("shape", (bench.number, 0), conditions={"state": result.conditions, "flags": flags})
    bench.report(f"measured {shape.text()}")


def _run_group(rows: list[tuple[int, Row]], bench: _Bench, watch: Watch) -> None:
    """Rows whose models are in memory at once: prepare all, then rounds in turn."""
    settings = bench.settings
    todo = [(n, row) for n, row in rows if row.status == "ok" and len(row.rounds) < settings.rounds]
    if not todo:
        return
    workers: dict[int, WorkerProcess] = {}
    spent: dict[int, float] = dict.fromkeys((n for n, _ in todo), 0.0)
    try:
        judges = make_references(
            [row for _, row in todo], settings, bench.reference, bench.scratch, bench.request, bench.report
        )
        for n, row in todo:
            bench.report(f"{row.plan.label}: load, warm up, check")
            workers[n] = WorkerProcess(settings.threads, bench.scratch)
            _guarded(row, settings, workers[n], spent, n, lambda row, ask: _prepare(row, ask, bench, judges))
            _keep(bench, n, row)
        for turn in range(settings.rounds):
            # alternating direction evens out a row's neighbours and its distance from the start
            for n, row in todo if turn % 2 == 0 else reversed(todo):
                if row.status != "ok" or len(row.rounds) > turn:
                    continue
                if _late(row):
                    continue
                bench.report(f"round {turn + 1}/{settings.rounds}: {row.plan.label}")
                time.sleep(SETTLE_S)
                watch.start([w.pid for w in workers.values()])
                _guarded(row, settings, workers[n], spent, n, lambda row, ask: _round(row, ask, bench))
                watch.stop()
                _keep(bench, n, row, latest=row.status == "ok" and not _late(row))
        for n, row in todo:
            if row.status == "ok" and row.rounds and row.plan.ranked and not row.plan.again and not _late(row):
                _afterwards(row, workers[n], bench)
            _keep(bench, n, row)
    finally:
        for worker in workers.values():
            worker.close()


def _late(row: Row) -> bool:
    """Whether the row hit its time limit, so that its process was ended."""
    return any(flag.code is FlagCode.TIME_LIMIT for flag in row.flags)


def _keep(bench: _Bench, n: int, row: Row, *, latest: bool = False) -> None:
    """Write a row to the journal: its latest round, or everything else."""
    if bench.journal is None:
        return
    if latest:
        bench.journal.add("round", (bench.number, n), round=row.rounds[-1])
    else:
        bench.journal.save((bench.number, n), row)


Ask = Callable[..., Any]


def _guarded(
    row: Row,
    settings: Settings,
    worker: WorkerProcess,
    spent: dict[int, float],
    n: int,
    action: Callable[[Row, Ask], None],
) -> None:
    """Run a row's action; failures become the row's error, and the time taken counts against its limit."""
    started = time.perf_counter()

    def ask(do: str, **arguments: object) -> Any:
        left = settings.limit_s - spent[n] - (time.perf_counter() - started)
        return worker.ask(do, max(left, 0.001), settings.limit_s, **arguments)

    try:
        action(row, ask)
    except WorkerLate as e:
        if row.rounds:  # keep what was measured
            text = f"time limit: {len(row.rounds)} of {settings.rounds} rounds in {settings.limit_s:g} s"
            row.flags.append(Flag(FlagCode.TIME_LIMIT, text))
        else:
            row.status, row.error = "failed", str(e)
    except WorkerFailed as e:
        row.status, row.error = "failed", str(e)
    spent[n] += time.perf_counter() - started


def _prepare(row: Row, ask: Ask, bench: _Bench, judges: dict[JudgeKey, Judge]) -> None:
    plan, shape, settings = row.plan, row.shape, bench.settings
    served = get(plan.runtime)[0].served
    request = bench.request(shape, served)
    opened = ask(
        "open",
        runtime=plan.runtime,
        source=plan.source,
        opens=plan.opens,
        load_options=plan.load_options,
        options={
            "threads": settings.threads,
            "capacity": None if bench.spec.task == Task.FEATURE_EXTRACTION else shape.capacity,
            "precision": plan.compute if has_own_bits(plan.precision) else plan.precision,
            "batch": shape.batch,
        },
    )
    row.load_s, row.versions, row.facts, row.served = opened["load_s"], opened["versions"], opened["facts"], served
    row.processes += 1
    row.first = ask("round", **request, cold=True)
    warm = ask("warmup", **request)
    row.discarded, row.settled = row.discarded + warm["rounds"], warm["settled"]
    row.memory = ask("memory")  # before the check, which allocates more than the runtime does
    if plan.ranked and (judge := judges.get(Judge.key(plan))) is not None:
        checked = ask("check", file=str(judge.file), compute=plan.compute, reference=judge.runtime)
        row.verdict, row.checks = checked["verdict"], checked["checks"]
        row.quality = judge.quality
        if judge.weights is not None:
            row.checks = [judge.weights, *row.checks]
            row.verdict = FAIL if judge.weights["verdict"] == FAIL else row.verdict


def _round(row: Row, ask: Ask, bench: _Bench) -> None:
    made = ask("round", **bench.request(row.shape, get(row.plan.runtime)[0].served))
    row.rounds.append(made | {"process": row.processes - 1})
    row.measured = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _afterwards(row: Row, worker: WorkerProcess, bench: _Bench) -> None:
    """Measure energy and the profile separately, since they disturb timing or take long.

    Servers are skipped: the work happens in another process. A failure here becomes a flag; the row keeps its numbers.
    """
    if row.served:
        return
    request, limit = bench.request(row.shape), bench.settings.limit_s
    wanted = {"energy": bench.settings.energy, "blocks": bench.settings.profile}
    for name in (name for name, asked in wanted.items() if asked):
        options = {"window_s": ENERGY_WINDOW_S} if name == "energy" else {}
        try:
            setattr(row, name, worker.ask(name, limit, limit, **options, **request))
        except WorkerFailed as e:
            row.flags.append(Flag(FlagCode.NOT_MEASURED, f"no {'profile' if name == 'blocks' else name}: {e}"))
            return


def _judge(result: ShapeResult) -> None:
    """Set the shape's noise and flags."""
    result.noise, result.prefill_noise = of_twins(result.rows), of_twins(result.rows, prefill=True)
    if result.noise is not None and result.noise.noisy:
        noisy = Flag(FlagCode.NOISY, f"noisy: two runs of the same row differ by {result.noise.text()}")
        result.flags = [f for f in result.flags if f.code is not FlagCode.NOISY] + [noisy]
    for row in result.rows:
        row.flags = list(dict.fromkeys(row.flags + row_flags(row, result.rows)))
