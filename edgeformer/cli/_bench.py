"""What `bench` and `compare` share: the options of a measurement, and how its rows are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._common import allow_unread, default_threads, notes, status, threads_option


class Sizes(click.ParamType):
    """Positive integers separated by commas."""

    name = "n[,n...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """The integers."""
        try:
            sizes = tuple(int(v) for v in str(value).split(",")) if not isinstance(value, tuple) else value
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is not a list of positive integers such as 1 or 1,8", param, ctx)
        return tuple(dict.fromkeys(sizes))


def bench_options(function: Callable) -> Callable:
    """The options of a measurement."""
    positive = click.IntRange(min=1)
    for option in reversed(
        [
            click.option(
                "--runtime", "runtimes", default=None, help="Names, separated by commas. [default: all that fit]"
            ),
            click.option(
                "--prompt",
                "prompts",
                type=Sizes(),
                default="128",
                show_default=True,
                help="Tokens of prefill; 32,128: a row each.",
            ),
            click.option("--gen", type=positive, default=64, show_default=True, help="Tokens of decode."),
            click.option("--rounds", type=positive, default=5, show_default=True, help="Measured rounds."),
            click.option(
                "--batch",
                "batches",
                type=Sizes(),
                default="1",
                show_default=True,
                help="Encoders: sequences at once; 1,8: a row each.",
            ),
            click.option(
                "--provider",
                default="CPUExecutionProvider",
                show_default=True,
                help="ONNX Runtime's execution provider.",
            ),
            click.option(
                "--limit",
                type=click.FloatRange(min=0, min_open=True),
                default=900.0,
                show_default=True,
                help="Seconds before a silent row ends.",
            ),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the token ids."),
            click.option(
                "--json", "json_file", default=None, metavar="FILE", help="Append JSONL records; - for stdout."
            ),
            click.option("--markdown", is_flag=True, help="Print a Markdown table."),
            threads_option,
            allow_unread,
        ]
    ):
        function = option(function)
    return function


def settings_of(options: dict[str, Any]) -> Any:
    """The settings that the options ask for; also checks that records can be written.

    Raises:
        InputError: the JSON file can't be written, or this onnxruntime lacks the provider.
    """
    from edgeformer.errors import InputError
    from edgeformer.measure.harness import Settings

    file = options["json_file"]
    if file not in (None, "-"):
        try:
            Path(file).open("a").close()
        except OSError as e:
            raise InputError(f"can't write records to {file}: {e.strerror}") from e
    return Settings(
        prompts=options["prompts"],
        gen=options["gen"],
        rounds=options["rounds"],
        threads=default_threads(options["threads"]),
        batches=options["batches"],
        provider=options["provider"],
        seed=options["seed"],
        limit_s=options["limit"],
    )


def chosen_runtimes(options: dict[str, Any]) -> list[str] | None:
    """The names asked for, or None for all."""
    from edgeformer.errors import InputError

    if (names := options["runtimes"]) is None:
        return None
    chosen = [r.strip() for r in names.split(",") if r.strip()]
    if not chosen:
        raise InputError("--runtime names none; leave it out for all, or give names separated by commas")
    return chosen


def sources_for(options: dict[str, Any], folders: list[str], model: str) -> list[str]:
    """Artefacts for runtimes that open them and MODEL for those that open it, of the runtimes asked for."""
    from edgeformer.runtimes._protocol import require

    chosen = chosen_runtimes(options)
    if chosen is None:
        return [*folders, model]
    opens = {require(name)[0].opens for name in chosen}
    return folders + ([model] if "checkpoint" in opens else [])


def formats_for(options: dict[str, Any], spec: Any, precision: str) -> list[str]:
    """The artefact formats to export in a precision: those that the runtimes asked for open, by default all that can run this
    spec here. A runtime that opens checkpoints as they are needs one for any other precision."""
    from edgeformer.errors import InputError
    from edgeformer.measure.plans import fitting_runtimes
    from edgeformer.runtimes._protocol import Options, get, names, require

    chosen = chosen_runtimes(options)
    runtimes = fitting_runtimes(spec) if chosen is None else [require(name)[0] for name in chosen]
    formats = {runtime.opens for runtime in runtimes}
    if precision != "fp32":
        made_for = [get(name)[0] for name in names()]  # an encoder has no folder for mlx-lm
        can_be = {runtime.opens for runtime in made_for if runtime.refuses(spec, Options()) is None}
        formats |= {kind for runtime in runtimes for kind in runtime.also_opens} & can_be
    formats = formats & {"mlx"} if precision in ("4bit", "8bit") else formats - {"checkpoint"}
    if precision != "fp32" and not formats:
        raise InputError(
            f"none of the runtimes asked for runs a {precision} export of this model; leave the precision out"
        )
    return sorted(formats)


def execute(sources: list[str], original: str | None, options: dict[str, Any]) -> None:
    """Run the rows, print the table, write the records.

    Exit code 1 if a row failed or says something else, 130 if Ctrl-C ended it: what was measured is shown and written.
    """
    import uuid

    from edgeformer import api, parity
    from edgeformer.measure import machine
    from edgeformer.measure.record import records, write_jsonl

    settings, facts = settings_of(options), machine.facts()
    with status("starting") as report:
        spec, run = api.bench(
            sources,
            runtimes=chosen_runtimes(options),
            against=original,
            settings=settings,
            load_options={"allow_unread_config": options["allow_unread_config"]},
            report=report,
            note=lambda line: notes([line]),
        )
    _show(run.rows, spec, settings, facts, options)
    if (file := options["json_file"]) is not None:
        name = Path(original or sources[0]).resolve().name
        made = records(run.rows, spec, machine=facts, name=name, settings=settings, run_id=uuid.uuid4().hex)
        write_jsonl(made, None if file == "-" else file)
    if run.interrupted:
        click.echo("interrupted: these are the rounds measured before", err=True)
        sys.exit(130)
    if any(row.status != "ok" or (row.plan.ranked and row.verdict == parity.FAIL) for row in run.rows):
        sys.exit(1)


def _show(rows: list[Any], spec: Any, settings: Any, facts: dict[str, Any], options: dict[str, Any]) -> None:
    from rich.console import Console

    from edgeformer.measure import table

    shape = f"prompt + {settings.gen} generated tokens, " if spec.task == "text-generation" else ""
    threads = f"{settings.threads} thread" + ("s" if settings.threads > 1 else "")
    title = f"{shape}{threads}, {settings.rounds} rounds, median ± half range · {facts['cpu_info']}"
    if options["markdown"]:
        click.echo(f"{title}\n\n{table.markdown(rows, spec.task)}")
    elif options["json_file"] != "-":
        console = Console() if sys.stdout.isatty() else Console(width=200)
        console.print(table.rich_table(rows, spec.task, title))
