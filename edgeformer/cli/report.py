"""`edgeformer report`."""

from __future__ import annotations

from typing import Any

import click

from edgeformer.report import FORMATS


@click.command(
    name="report",
    epilog="Examples:  edgeformer report rows.jsonl -o report.html  ·  edgeformer report mac.jsonl llama-bench.csv -o all.html"
    "  ·  edgeformer report rows.jsonl -o for-llama.jsonl --format llama-bench",
)
@click.argument("sources", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", default=None, type=click.Path(), help="Output file; - for stdout. [default: stdout]")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=None,
    help="[default: by the file's suffix; markdown on stdout]",
)
def command(sources: tuple[str, ...], output: str | None, form: str | None) -> None:
    """Make a report from records: one HTML file that works offline, Markdown, CSV, or JSONL.

    FILEs are outputs of `bench --json` and `compare --json` from any machine, and llama-bench's JSON, JSONL or CSV of any
    version.
    """
    from edgeformer.measure.reading import read_records
    from edgeformer.report.formats import format_of, text_of, write_report

    output = None if output == "-" else output
    if output is not None and form is None:
        format_of(output)  # refuse before reading
    records: list[dict[str, Any]] = []
    seen = set()
    for source in dict.fromkeys(sources):
        for record in read_records(source):
            key = str(sorted((k, str(v)) for k, v in record.items()))
            if key not in seen:  # the same run in two files is one run
                seen.add(key)
                records.append(record)
    if output is None:
        click.echo(text_of(records, form or "markdown"), nl=False)
        return
    write_report(records, output, format=form)
    click.echo(f"wrote {output}: {len(records)} records", err=True)
