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
                "--limit", type=float, default=900.0, show_default=True, help="Seconds before a silent row ends."
            ),
            click.option("--seed", default=0, show_default=True, help="Of the token ids."),
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


def execute(sources: list[str], original: str | None, options: dict[str, Any]) -> None:
    """Run the rows, print the table, write the records. Exit code 1 if a row failed or says something else."""
    import uuid

    from edgeformer import api, parity
    from edgeformer.measure import machine
    from edgeformer.measure.harness import Settings
    from edgeformer.measure.record import records, write_jsonl

    runtimes = options["runtimes"]
    settings = Settings(
        prompts=options["prompts"],
        gen=options["gen"],
        rounds=options["rounds"],
        threads=default_threads(options["threads"]),
        batches=options["batches"],
        provider=options["provider"],
        seed=options["seed"],
        limit_s=options["limit"],
    )
    facts = machine.facts()
    with status("starting") as report:
        spec, rows = api.bench(
            sources,
            runtimes=None if runtimes is None else [r.strip() for r in runtimes.split(",") if r.strip()],
            against=original,
            settings=settings,
            load_options={"allow_unread_config": options["allow_unread_config"]},
            report=report,
            note=lambda line: notes([line]),
        )
    _show(rows, spec, settings, facts, options)
    if (file := options["json_file"]) is not None:
        made = records(
            rows,
            spec,
            machine=facts,
            name=Path(original or sources[0]).name,
            settings=settings,
            run_id=uuid.uuid4().hex,
        )
        write_jsonl(made, "/dev/stdout" if file == "-" else file)
    if any(row.status != "ok" or (row.plan.ranked and row.verdict == parity.FAIL) for row in rows):
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
