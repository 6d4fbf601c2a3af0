"""Runs rows: reference first, then each row's process (load, check, warm up), then rounds in turn (A B C A B C ...).

Rounds are interleaved so that drift of the machine hits all rows alike. Every row gets the same token ids, exact counts,
greedy decoding, the same threads and the same cache capacity.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.measure.process import WorkerFailed, WorkerProcess
from edgeformer.measure.row import Plan, Row
from edgeformer.parity import sample_ids
from edgeformer.spec import Model

CHECKED_TOKENS = 96
SETTLE_S = 0.1
"""Pause before a round: thread pools of the row before spin for a while after their last step."""


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


Report = Callable[[str], None]


def run(
    plans: list[Plan],
    spec: Model,
    settings: Settings,
    *,
    reference: tuple[str, dict[str, Any]] | None,
    report: Report = lambda _: None,
) -> list[Row]:
    """Measure every plan.

    Args:
        plans: what to run; each gets a row per shape of the settings.
        spec: the model they all run.
        settings: what to run.
        reference: (MODEL, load options) of the original to check against, or None: every row is then unchecked.
        report: told what is happening.
    """
    batches = settings.batches if spec.task != "text-generation" else (1,)
    rows = [
        Row(replace(plan, prompt=prompt, batch=batch), settings.threads)
        for batch in batches
        for prompt in settings.prompts
        for plan in plans
    ]
    workers: dict[int, WorkerProcess] = {}
    with tempfile.TemporaryDirectory(prefix="edgeformer-bench-") as scratch:
        try:
            files = _references(rows, spec, settings, reference, Path(scratch), report)
            for i, row in enumerate(rows):
                report(f"{row.plan.label}: load, check, warm up")
                workers[i] = WorkerProcess(settings.threads)
                _guarded(row, lambda i=i, row=row: _prepare(row, workers[i], spec, settings, files))
            for n in range(settings.rounds):
                for i, row in enumerate(rows):
                    if row.status == "ok":
                        report(f"round {n + 1}/{settings.rounds}: {row.plan.label}")
                        time.sleep(SETTLE_S)
                        _guarded(row, lambda i=i, row=row: _round(row, workers[i], spec, settings))
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def _references(
    rows: list[Row],
    spec: Model,
    settings: Settings,
    reference: tuple[str, dict[str, Any]] | None,
    scratch: Path,
    report: Report,
) -> dict[str, Path]:
    """precision -> file with what rows of that precision must answer."""
    if reference is None:
        return {}
    source, load_options = reference
    shortest = min(settings.prompts)
    capacity = shortest + settings.gen
    length = min(max(CHECKED_TOKENS, 8), spec.context if spec.task != "text-generation" else capacity)
    generate = min(settings.gen, 32)
    request: dict[str, Any] = {"task": spec.task, "length": min(length, shortest)}
    if spec.task == "text-generation":
        ids = [int(i) for i in sample_ids(spec.vocab, length, settings.seed + 1)]
        request |= {"ids": ids, "prompt": _checked_prompt(length, generate, capacity), "generate": generate}
    files = {}
    for precision in dict.fromkeys(row.plan.precision for row in rows):
        report(f"reference, weights as {precision}")
        worker = WorkerProcess(settings.threads)
        file = scratch / f"{precision}.npz"
        try:
            made = worker.ask(
                "reference",
                settings.limit_s,
                source=source,
                load_options=load_options,
                precision=precision,
                threads=settings.threads,
                file=str(file),
                request=request,
            )
            files[precision] = file
            for row in rows:
                if row.plan.precision == precision:
                    row.reference = f"{made['runtime']} fp32, weights as {precision}"
        except WorkerFailed as e:
            for row in rows:
                if row.plan.precision == precision:
                    row.checks = [{"name": "reference", "verdict": "unchecked", "note": f"no reference: {e}"}]
        finally:
            worker.close()
    return files


def _checked_prompt(length: int, generate: int, capacity: int) -> int:
    return max(1, min(32, length, capacity - generate))


def _request(row: Row, spec: Model, settings: Settings) -> dict[str, Any]:
    prompt = [int(i) for i in sample_ids(spec.vocab, row.plan.prompt, settings.seed)]
    return {"prompt": prompt, "gen": settings.gen, "batch": row.plan.batch}


def _guarded(row: Row, action: Callable[[], None]) -> None:
    try:
        action()
    except WorkerFailed as e:
        row.status, row.error = "failed", str(e)


def _prepare(row: Row, worker: WorkerProcess, spec: Model, settings: Settings, files: dict[str, Path]) -> None:
    plan, limit, request = row.plan, settings.limit_s, _request(row, spec, settings)
    capacity = plan.prompt + settings.gen if spec.task == "text-generation" else None
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
            "precision": plan.precision,
            "provider": settings.provider,
        },
    )
    row.load_s, row.versions, row.facts = opened["load_s"], opened["versions"], opened["facts"]
    row.first = worker.ask("first", limit, **request)
    if plan.ranked and (file := files.get(plan.precision)) is not None:
        with np.load(file) as data:
            length = len(data["ids"]) if "ids" in data else 0
        generate = min(settings.gen, 32)
        prompt = _checked_prompt(length, generate, min(settings.prompts) + settings.gen)
        checked = worker.ask(
            "check", limit, file=str(file), precision=plan.precision, prompt=prompt, reference=row.reference or ""
        )
        row.verdict, row.checks = checked["verdict"], checked["checks"]
    row.discarded = worker.ask("warmup", limit, **request)["rounds"]


def _round(row: Row, worker: WorkerProcess, spec: Model, settings: Settings) -> None:
    row.rounds.append(worker.ask("round", settings.limit_s, **_request(row, spec, settings)))
    memory = worker.ask("memory", settings.limit_s)
    row.peak_rss_bytes, row.rss_source = memory["peak_rss_bytes"], memory["rss_source"]
