"""`edgeformer bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._bench import bench_options, chosen_runtimes, execute


@click.command(
    name="bench",
    epilog="Examples:  edgeformer bench build/m --against MODEL --threads 2  ·  edgeformer bench MODEL --runtimes torch,numpy"
    "  ·  edgeformer bench MODEL --runtimes http://localhost:8080/v1 --concurrency 1,4",
)
@click.argument("sources", metavar="MODEL|ARTEFACT...", nargs=-1, required=True)
@click.option("--against", default=None, help="The MODEL to check artefacts against. Without it, rows are unchecked.")
@bench_options
def command(sources: tuple[str, ...], against: str | None, **options: Any) -> None:
    """Measure latency: one fresh process per row, rounds interleaved. Rows are ranked only if their output was checked."""
    from edgeformer import api
    from edgeformer.checkpoint import bundle

    if options["host"] is not None:
        from edgeformer.cli._host import run_there

        run_there("bench", [*sources], {"--against": against}, options)
        return
    measure = partial(api.bench, list(sources), runtimes=chosen_runtimes(options), against=against)
    model = against or next((s for s in sources if not bundle.is_artefact(Path(s))), sources[0])
    execute(measure, model, options)
