"""Report formats: HTML, Markdown, CSV, all records as JSONL, and JSONL for llama-bench's own script."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import Any

from edgeformer.errors import InputError
from edgeformer.files.atomic import write_output
from edgeformer.measure.llama_bench import as_llama_bench
from edgeformer.report import FORMATS
from edgeformer.report.frame import COLUMNS, rows
from edgeformer.report.page import html

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "markdown", ".csv": "csv", ".jsonl": "jsonl"}


def format_of(file: str | os.PathLike) -> str:
    """The report format of a file's suffix.

    Raises:
        InputError: no format has this suffix.
    """
    suffix = os.path.splitext(os.fspath(file))[1].lower()  # noqa: PTH122
    if suffix not in _SUFFIXES:
        raise InputError(
            f"the suffix of {file} names no report format; end it in {', '.join(_SUFFIXES)}, or give --format"
        )
    return _SUFFIXES[suffix]


def write_report(records: list[dict[str, Any]], file: str | os.PathLike, *, format: str | None = None) -> None:
    """Write records as a report, in `format` or else in the format of the file's suffix.

    Raises:
        InputError: the format is unknown, or the file can't be written.
        RuntimeUnavailable: what the format needs isn't installed.
    """
    write_output(file, text_of(records, format or format_of(file)))


def text_of(records: list[dict[str, Any]], format: str) -> str:
    """A report as text."""
    match format:
        case "html":
            return html(records)
        case "markdown":
            return markdown(records)
        case "csv":
            return table_csv(records)
        case "jsonl":
            return "".join(json.dumps(r) + "\n" for r in records)
        case "llama-bench":
            return as_llama_bench(records)
    raise InputError(f"there is no report format {format!r}; formats are {', '.join(FORMATS)}")


def _shown(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in table order: ranked ones first within their shape."""
    found = [row for row in rows(records) if not row["twin"]]
    first = {id(row): n for n, row in enumerate(found)}
    shapes = {key: n for n, key in enumerate(dict.fromkeys((r["model"], r["machine"], r["shape"]) for r in found))}

    def key(row: dict[str, Any]) -> tuple:
        return (
            shapes[row["model"], row["machine"], row["shape"]],
            row["rank"] is None,
            row["rank"] or 0,
            first[id(row)],
        )

    return sorted(found, key=key)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def markdown(records: list[dict[str, Any]]) -> str:
    """A Markdown table per model and machine; empty columns are left out."""
    out = []
    shown = _shown(records)
    for model, machine in dict.fromkeys((r["model"], r["machine"]) for r in shown):
        same = [r for r in shown if (r["model"], r["machine"]) == (model, machine)]
        columns = [c for c in COLUMNS if c not in ("model", "machine") and any(r[c] is not None for r in same)]
        lines = [f"## {model} on {machine}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for row in same:
            cells = {**row, "rank": f"{row['rank']}{'=' if row['tie'] else ''}" if row["rank"] else None}
            lines.append("| " + " | ".join(_cell(cells[c]).replace("|", "\\|") for c in columns) + " |")
        noise = [r for r in same if r["noise_low"] is not None]
        for shape in dict.fromkeys(r["shape"] for r in noise):
            row = next(r for r in noise if r["shape"] == shape)
            lines += [
                "",
                f"{shape}: the same row run twice differs by a factor of {row['noise_low']:.3f}-{row['noise_high']:.3f} (95 %).",
            ]
        out.append("\n".join(lines))
    return "\n\n".join(out) + "\n"


def table_csv(records: list[dict[str, Any]]) -> str:
    """A CSV table with one line per row."""
    stream = io.StringIO()
    columns = [*COLUMNS, "tie", "prefill_low", "prefill_high", "decode_low", "decode_high", "max_abs", "flags", "error"]
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in _shown(records):
        writer.writerow({**row, "flags": "; ".join(row["flags"])})
    return stream.getvalue()
