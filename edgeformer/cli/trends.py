"""`edgeformer trends`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeformer.cli._common import as_json, echo, print_json


@click.command(name="trends", epilog="Examples:  edgeformer trends  ·  edgeformer trends -o trends.html")
@click.option("-o", "--output", default=None, type=click.Path(path_type=Path), help="Write an HTML page; - for stdout.")
@as_json
def command(output: Path | None, as_json: bool) -> None:
    """Show what small language models are made of, by half-year: a survey's table with its errors marked, and the named specs."""
    from edgeformer.files.atomic import write_output
    from edgeformer.report.trends import TRAITS, counts, page, survey

    if output == Path("-"):
        echo(page())
        return
    if output is not None:
        write_output(output, page())
        echo(f"wrote {output}", err=True)
        return
    rows = survey()
    if as_json:
        print_json(rows)
        return
    for trait in TRAITS:
        found = counts(rows, trait)
        values = sorted({value for counter in found.values() for value in counter})
        echo(f"{trait:<10}" + "".join(f"{value:>11}" for value in values))
        for half, counter in found.items():
            echo(f"{half:<10}" + "".join(f"{counter.get(value, 0) or '-':>11}" for value in values))
        echo()
    echo("known errors in the survey's table, and omissions:")
    for row in rows:
        if row["error"]:
            echo(f"  {row['model']}: {row['error']}")
