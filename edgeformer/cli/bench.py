"""`edgeformer bench`."""

from __future__ import annotations

from typing import Any

import click

from edgeformer.cli._bench import bench_options, execute


@click.command(
    name="bench",
    epilog="Examples:  edgeformer bench build/m --against MODEL --threads 2  ·  edgeformer bench MODEL --runtime torch,numpy",
)
@click.argument("sources", metavar="MODEL|ARTEFACT...", nargs=-1, required=True)
@click.option("--against", default=None, help="The MODEL to check artefacts against. Without one, rows stay unchecked.")
@bench_options
def command(sources: tuple[str, ...], against: str | None, **options: Any) -> None:
    """Measure latency: one fresh process per row, rounds interleaved. Rows are ranked only if their output was checked."""
    execute(list(sources), against, options)
