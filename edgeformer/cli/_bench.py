"""What `bench` and `compare` share: which rows to run, and how to show them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from edgeformer.cli._common import allow_unread, default_threads, notes, status, threads_option

SLOW_REFERENCE = 50_000_000
"""Above this many parameters the numpy runtime is left out unless it is asked for: it takes seconds per token."""


def bench_options(function: Callable) -> Callable:
    """The options of a measurement."""
    for option in reversed(
        [
            click.option("--prompt", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of prefill."),
            click.option("--gen", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens of decode."),
            click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Measured rounds."),
            click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Encoders: batch size."),
            click.option("--limit", type=float, default=900.0, show_default=True, help="Seconds before a silent row ends."),
            click.option("--seed", default=0, show_default=True, help="Of the token ids."),
            click.option("--json", "json_file", default=None, metavar="FILE", help="Append JSONL records; - for stdout."),
            click.option("--markdown", is_flag=True, help="Print a Markdown table."),
            threads_option,
            allow_unread,
        ]
    ):
        function = option(function)
    return function


def plans_for_artefact(
    source: str, manifest: dict[str, Any], spec: Any, chosen: list[str] | None, *, many: bool = False
) -> list[Any]:
    """The rows of an ONNX artefact."""
    from pathlib import Path

    from edgeformer.bench.row import Plan

    suffix = f" ({Path(source).name})" if many else ""
    return [
        Plan(name, source, "onnx", manifest["precision"], name + suffix)
        for name in _runtimes(chosen, "onnx", spec)
    ]


def plans_for_checkpoint(model: str, spec: Any, chosen: list[str] | None, options: dict[str, Any]) -> list[Any]:
    """The rows of a checkpoint: what runs the spec itself, in fp32."""
    from edgeformer.bench.row import Plan
    from edgeformer.inspection import parameters
    from edgeformer.runtimes._protocol import get

    found = _runtimes(chosen, "checkpoint", spec)
    if chosen is None and "numpy" in found and parameters(spec) > SLOW_REFERENCE:
        found.remove("numpy")
        notes(["the numpy runtime is left out for a model of this size; --runtime numpy asks for it"])
    load_options = {"allow_unread_config": options["allow_unread_config"]}
    return [
        Plan(name, model, "checkpoint", "fp32", name, get(name)[0].ranked, load_options) for name in found
    ]


def _runtimes(chosen: list[str] | None, opens: str, spec: Any) -> list[str]:
    """The runtimes to use: those asked for, or every installed one whose rows are results."""
    from edgeformer.runtimes._protocol import Options, get, names, require

    if chosen is not None:
        return [name for name in chosen if require(name)[0].opens == opens]
    found = []
    for name in names():
        runtime, _ = get(name)
        if runtime.opens != opens or not runtime.ranked:
            continue
        reason = runtime.unavailable() or runtime.refuses(spec, Options())
        if reason is None:
            found.append(name)
        else:
            notes([f"no row for {name}: {reason}"])
    return found


def execute(
    plans: list[Any], spec: Any, original: str | None, options: dict[str, Any], weights_digest: str | None = None
) -> None:
    """Run the rows, print the table, write the records. Exit code 1 if a row failed or says something else."""
    import uuid

    from rich.console import Console

    from edgeformer.bench import machine, table
    from edgeformer.bench.harness import Settings, run
    from edgeformer.bench.record import records, write_jsonl
    from edgeformer.errors import InputError
    from edgeformer.verify import FAIL

    if not plans:
        raise InputError("no runtime is left to measure; `edgeformer runtimes` lists what is installed")
    needed = options["prompt"] + (options["gen"] if spec.task == "text-generation" else 0)
    if needed > spec.context:
        raise InputError(f"prompt and generated tokens ({needed}) exceed the model's {spec.context} positions")
    threads = default_threads(options["threads"])
    settings = Settings(
        prompt=options["prompt"],
        gen=options["gen"],
        rounds=options["rounds"],
        threads=threads,
        batch=options["batch"] if spec.task != "text-generation" else 1,
        seed=options["seed"],
        limit_s=options["limit"],
    )
    facts = machine.facts()
    reference = None if original is None else (original, {"allow_unread_config": options["allow_unread_config"]})
    with status("starting") as report:
        rows = run(plans, spec, settings, reference=reference, report=report)
    if spec.task == "text-generation":
        shape = f"{settings.prompt} prompt + {settings.gen} generated tokens"
    else:
        shape = f"batch {settings.batch} × {settings.prompt} tokens"
    title = f"{shape}, {threads} threads, {settings.rounds} rounds, median ± half range · {facts['cpu_info']}"
    json_file = options["json_file"]
    if options["markdown"]:
        click.echo(f"{title}\n\n{table.markdown(rows, spec.task, settings.prompt)}")
    elif json_file != "-":
        console = Console() if sys.stdout.isatty() else Console(width=200)
        console.print(table.rich_table(rows, spec.task, settings.prompt, title))
    if json_file is not None:
        made = records(
            rows,
            spec,
            machine=facts,
            name=plans[0].source.rstrip("/").rsplit("/", 1)[-1] if original is None else original.rstrip("/").rsplit("/", 1)[-1],
            prompt=settings.prompt,
            gen=settings.gen,
            seed=settings.seed,
            weights_digest=weights_digest,
            run_id=uuid.uuid4().hex,
        )
        write_jsonl(made, "/dev/stdout" if json_file == "-" else json_file)
    if any(row.status != "ok" or (row.plan.ranked and row.verdict == FAIL) for row in rows):
        sys.exit(1)
