"""What `bench` and `compare` share: benchmark options, and the output of the measured rows."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._common import (
    ROUNDS,
    SEED,
    allow_nonfinite,
    allow_unread,
    default_threads,
    echo,
    notes,
    status,
    threads_option,
    trust_code,
    without_head_option,
)
from edgeformer.files.limits import MAX_BATCH, MAX_SIZE
from edgeformer.files.quoting import plain, shown

MOST_SHAPES = 100
"""Longest accepted list of sizes: every entry adds its own rows."""


class Sizes(click.ParamType):
    """Comma-separated integers from `least` to `most`."""

    name = "n[,n...]"

    def __init__(self, least: int = 1, most: int = MAX_SIZE):
        self.least, self.most = least, most

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """The integers."""
        try:
            sizes = tuple(int(v) for v in str(value).split(",")) if not isinstance(value, tuple) else value
        except ValueError:
            sizes = ()
        if sizes and (max(sizes) > self.most or len(sizes) > MOST_SHAPES):
            self.fail(f"a list takes at most {MOST_SHAPES} numbers, each at most {self.most:,}", param, ctx)
        if not sizes or min(sizes) < self.least:
            kind = "positive integers" if self.least else "non-negative integers"
            self.fail(f"{shown(value)} is not a list of {kind} such as {self.least} or {self.least},8", param, ctx)
        return tuple(dict.fromkeys(sizes))


def _sizes(name: str, key: str, default: str, help: str, least: int = 1, most: int = MAX_SIZE) -> Callable:
    return click.option(name, key, type=Sizes(least, most), default=default, show_default=True, help=help)


def bench_options(function: Callable) -> Callable:
    """Add the benchmark options to a command."""
    for option in reversed(
        [
            click.option(
                "--runtimes",
                "--runtime",
                "runtimes",
                default=None,
                help="Comma-separated: name, name:variant, or a server's URL. [default: all that can run the model]",
            ),
            _sizes("--prompt", "prompts", "128", "Prompt tokens (prefill); 32,128: a row each."),
            _sizes("--gen", "gens", "64", "Tokens to decode; 64,256: a row each."),
            _sizes("--depth", "depths", "0", "Tokens in the KV cache before the prompt; 0,1024: a row each.", 0),
            _sizes("--batch", "batches", "1", "Sequences per batch; 1,8: a row each.", most=MAX_BATCH),
            _sizes(
                "--concurrency",
                "concurrency",
                "1",
                "Servers only: concurrent clients; 1,4: a row each.",
                most=MAX_BATCH,
            ),
            click.option("--rounds", type=ROUNDS, default=5, show_default=True, help="Measured rounds."),
            click.option(
                "--limit",
                type=click.FloatRange(min=0, max=1e6, min_open=True),
                default=900.0,
                show_default=True,
                help="Time limit in seconds for one row of one shape.",
            ),
            click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the random token ids."),
            click.option(
                "--text",
                type=click.Path(exists=True, dir_okay=False),
                default=None,
                help="Take prompts from this text instead of random ids, and measure the quality loss of quantized builds on it.",
            ),
            click.option(
                "--profile", is_flag=True, help="Also profile where the time goes: attention, FFN, norms, head."
            ),
            click.option("--no-twin", is_flag=True, help="Don't repeat a row: no noise interval and no ties."),
            click.option(
                "--no-roofline", is_flag=True, help="Don't measure this machine's peak bandwidth and compute rates."
            ),
            click.option("--resume", is_flag=True, help="Resume the same measurement where it was interrupted."),
            click.option(
                "--json", "json_file", default=None, metavar="FILE", help="Append JSONL records to FILE; - for stdout."
            ),
            click.option(
                "--report", "report_file", default=None, metavar="FILE", help="Write an HTML report of the records."
            ),
            click.option("--markdown", is_flag=True, help="Print a Markdown table."),
            threads_option,
            allow_unread,
            allow_nonfinite,
            without_head_option,
            trust_code,
            click.option(
                "--host",
                default=None,
                metavar="USER@HOST",
                help="Run over ssh on this host, where edgeformer is installed, and fetch the records.",
            ),
            click.option(
                "--host-command",
                default="edgeformer",
                show_default=True,
                help="The edgeformer command on that host.",
            ),
        ]
    ):
        function = option(function)
    return function


def check_outputs(options: dict[str, Any]) -> None:
    """Check that every output file can be written, before anything is measured.

    Raises:
        InputError: an output file can't be written, or --limit is not finite.
        RuntimeUnavailable: the report needs packages that aren't installed.
    """
    from edgeformer.errors import InputError

    for name in ("json_file", "report_file"):
        file = options[name]
        if file is None or (file == "-" and name == "json_file"):
            continue
        folder = Path(file).absolute().parent
        if not folder.is_dir():
            raise InputError(f"can't write records to {file}: the folder {folder} does not exist")
        if Path(file).is_dir() or not os.access(Path(file) if Path(file).exists() else folder, os.W_OK):
            raise InputError(
                f"can't write records to {file}: it is {'a folder' if Path(file).is_dir() else 'read-only'}"
            )
    if options["report_file"] == "-":
        raise InputError("--report needs a file name; an HTML report can't go to stdout")
    if options["report_file"] is not None:
        from edgeformer.report.page import require_packages

        require_packages()
    if not math.isfinite(options["limit"]):
        raise InputError("--limit must be a finite number of seconds")


def settings_of(options: dict[str, Any], model: str) -> Any:
    """The `Settings` for these options; runs `check_outputs` first.

    model: the MODEL whose tokenizer encodes --text.

    Raises:
        InputError: see `check_outputs`; or the text can't be read.
    """
    from edgeformer.measure.settings import Settings

    check_outputs(options)
    ids: tuple[int, ...] = ()
    if options["text"] is not None:
        from edgeformer.checkpoint.companions.text_file import ids_of
        from edgeformer.checkpoint.loading import load

        needed = max(options["prompts"]) + max(options["depths"])
        count = needed * max(*options["batches"], *options["concurrency"])
        loaded = load(model, allow_unread_config=options["allow_unread_config"], without_head=options["without_head"])
        ids = tuple(ids_of(options["text"], loaded.around, count).tolist())
    return Settings(
        prompts=options["prompts"],
        gens=options["gens"],
        rounds=options["rounds"],
        threads=default_threads(options["threads"]),
        batches=options["batches"],
        depths=options["depths"],
        concurrency=options["concurrency"],
        seed=options["seed"],
        limit_s=options["limit"],
        twice=not options["no_twin"],
        profile=options["profile"],
        text=ids,
        text_name=options["text"] and Path(options["text"]).name,
    )


def chosen_runtimes(options: dict[str, Any]) -> list[str] | None:
    """The names given by --runtimes, or None for all."""
    from edgeformer.errors import InputError

    if (names := options["runtimes"]) is None:
        return None
    chosen = [r.strip() for r in names.split(",") if r.strip()]
    if not chosen:
        raise InputError("--runtimes is empty; leave it out for all, or give comma-separated names")
    return chosen


def execute(measure: Callable[..., tuple[Any, Any]], model: str, options: dict[str, Any]) -> None:
    """Run the rows, print the table, write the records.

    Exit code 1 if a row failed or its outputs differ from the original's, 130 after Ctrl-C: rows measured by then are still
    shown and written.

    Args:
        measure: `edgeformer.bench` or `edgeformer.compare` with its own arguments bound.
        model: the MODEL that the rows measure.
        options: the options of the command line.
    """
    from edgeformer.errors import InputError
    from edgeformer.measure import machine
    from edgeformer.measure.record import is_stream, records, write_jsonl
    from edgeformer.verification import parity

    settings, facts = settings_of(options, model), machine.facts()
    file = options["json_file"]
    rates: dict[str, Any] = {}
    made: list[dict[str, Any]] = []
    problems: list[str] = []

    def keep(spec: Any, run: Any, *, last: bool = False) -> bool:
        """Build the records so far and write them to the file (to a stream only when `last`); returns whether that worked."""
        made[:] = records(run, spec, machine=facts, name=Path(model).resolve().name, settings=settings, rates=rates)
        problems.clear()
        if file not in (None, "-") and (last or not is_stream(file)):
            try:
                write_jsonl(made, file)
            except InputError as e:
                problems.append(str(e))
        return not problems

    with status("starting") as report:
        spec, run = measure(
            settings=settings,
            resume=options["resume"],
            load_options={name: options[name] for name in ("allow_unread_config", "allow_nonfinite", "without_head")},
            report=report,
            note=lambda line: notes([line]),
            measured=keep,
        )
        if not options["no_roofline"] and not run.interrupted and any(row.rounds for row in run.rows):
            report("measuring this machine's peak rates")
            rates |= _rates(settings, made)
    keep(spec, run, last=True)
    if (page := options["report_file"]) is not None:
        from edgeformer.report.page import write_html

        try:
            write_html(made, page)
        except InputError as e:
            problems.append(str(e))
    _show(run, spec, settings, facts, options)
    if file == "-":
        write_jsonl(made, None)
        notes(run.notes)
    if problems:
        raise InputError(problems[0])
    if run.interrupted:
        echo("interrupted: these are the rounds measured so far; --resume continues", err=True)
        sys.exit(130)
    if any(row.status != "ok" or (row.plan.ranked and row.verdict == parity.FAIL) for row in run.rows):
        sys.exit(1)


def _rates(settings: Any, made: list[dict[str, Any]]) -> dict[str, Any]:
    """The machine's peak rates, measured in a separate process; empty if that fails."""
    from edgeformer.files.scratch import temporary_folder
    from edgeformer.measure.process import WorkerFailed, WorkerProcess

    sizes = sorted({r["weight_bytes"] for r in made if r["weight_bytes"]})
    with temporary_folder() as scratch:
        worker = WorkerProcess(settings.threads, scratch)
        try:
            return worker.ask("rates", 120, 120, threads=settings.threads, sizes=sizes)
        except WorkerFailed as e:
            notes([f"no roofline: {e}"])
        except KeyboardInterrupt:  # the rows measured before are complete: they are still shown and written
            worker.close(kill=True)
            notes(["no roofline: interrupted"])
        finally:
            worker.close()
    return {}


def _show(run: Any, spec: Any, settings: Any, facts: dict[str, Any], options: dict[str, Any]) -> None:
    from rich.console import Console

    from edgeformer.measure import table

    threads = f"{settings.threads} thread" + ("s" if settings.threads > 1 else "")
    title = f"{threads}, {settings.rounds} rounds, median ± half range · {facts['cpu_info']}"
    remarks = table.remarks(run, spec.task)
    if options["markdown"]:
        echo("\n\n".join([title, table.markdown(run, spec.task), *remarks]))
    elif options["json_file"] != "-":
        console = Console() if sys.stdout.isatty() else Console(width=200)
        console.print(table.rich_table(run, spec.task, title))
        for remark in remarks:
            console.print(plain(remark), highlight=False, markup=False)
