"""Options, output and progress bars that several commands share."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from edgeformer.files.limits import MAX_ROUNDS, MAX_SIZE, MAX_THREADS
from edgeformer.files.quoting import MAX_MESSAGE, plain

SIZE, ROUNDS, SEED = click.IntRange(1, MAX_SIZE), click.IntRange(1, MAX_ROUNDS), click.IntRange(0, 2**63 - 1)
"""Option types: a count of tokens or channels, a count of rounds, a random seed."""

allow_unread = click.option(
    "--allow-unread-config",
    is_flag=True,
    help="Load the model even if config.json has keys that edgeformer does not know; they are listed.",
)


without_head_option = click.option(
    "--without-head",
    is_flag=True,
    help="Take an encoder's body alone, without its classifier or other head.",
)

allow_nonfinite = click.option(
    "--allow-nonfinite",
    is_flag=True,
    help="Accept NaN and infinite weights, which are refused by default.",
)


def _trust(ctx: click.Context, param: click.Parameter, files: tuple[str, ...]) -> None:
    from edgeformer.files.trust import trust

    for file in files:
        notes([f"{file} may run as code (SHA-256 {trust(file)})"])


trust_code = click.option(
    "--trust-code",
    "trusted",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    expose_value=False,
    callback=_trust,
    help="Allow this file of a model's folder to run as code; by default none may. Repeatable.",
)


class OutputFolder(click.Path):
    """An output folder; `-` is refused, since a folder can't be written to standard output."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            self.fail("a folder can't be written to standard output; ./- names a folder called -", param, ctx)
        return super().convert(value, param, ctx)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def threads_option(function: Callable) -> Callable:
    """`--threads`, one per physical core by default."""
    return click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        default=None,
        help="Compute threads. [default: physical cores]",
    )(function)


def default_threads(threads: int | None) -> int:
    """`threads`, or one per physical core if it is None."""
    from edgeformer.inference.threads import physical_cores

    return threads or physical_cores()


def load_model(model: str, allow: bool = False, nonfinite: bool = False, *, without_head: bool = False) -> Any:
    """Call `edgeformer.load` and print its notes on stderr."""
    from edgeformer.checkpoint.loading import load

    loaded = load(model, allow_unread_config=allow, allow_nonfinite=nonfinite, without_head=without_head)
    notes(loaded.notes)
    return loaded


def notes(lines: list[str]) -> None:
    """Print notes for the user on stderr."""
    for line in lines:
        click.echo(plain(f"note: {line}", limit=MAX_MESSAGE), err=True)


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print text without control characters: names from files can't move the cursor or set the terminal's title."""
    click.echo(plain(text), nl=nl, err=err)


def text_table(*columns: str, **options: Any) -> Any:
    """A rich table whose cells are plain text, not markup: names from files may hold brackets and escape sequences."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    def shown(cell: Any) -> Any:
        return Text(plain(cell.plain), cell.style) if isinstance(cell, Text) else escape(plain(str(cell)))

    class PlainTable(Table):
        def add_row(self, *cells: Any, **more: Any) -> None:
            super().add_row(*map(shown, cells), **more)

    if isinstance(options.get("title"), str):
        options["title"] = escape(plain(options["title"]))
    return PlainTable(*(escape(plain(column)) for column in columns), **options)


def print_json(data: Any) -> None:
    """Print indented JSON on stdout."""
    click.echo(json.dumps(data, indent=1))


def size(count: float) -> str:
    """A byte count in readable decimal units."""
    from rich.filesize import decimal

    return decimal(int(count))


@contextlib.contextmanager
def byte_progress(text: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr for callbacks (done, total) in bytes; None where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(text), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def count_progress(text: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr for callbacks (done, total) that count items; None where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """A status line on stderr; plain lines where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda line: echo(line, err=True)
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(text) as spinner:
        yield lambda line: spinner.update(Text(plain(line)))
