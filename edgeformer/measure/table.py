"""The comparison as a table: verified rows ranked, everything else listed below with the reason."""

from __future__ import annotations

import statistics
from typing import Any

from edgeformer.measure.row import Row, quantile

DECODER = (
    "runtime",
    "precision",
    "prefill tok/s",
    "decode tok/s",
    "ITL ms p50/p90",
    "TTFT ms",
    "load s",
    "peak MB",
    "CPU/wall",
)
ENCODER = ("runtime", "precision", "tokens/s", "latency ms p50/p90", "first call ms", "load s", "peak MB", "CPU/wall")


def _spread(rates: list[float], digits: int = 1) -> str:
    """median ± half the range."""
    half = (max(rates) - min(rates)) / 2
    return f"{statistics.median(rates):.{digits}f} ± {half:.{digits}f}"


def cells(row: Row, task: str, prompt: int) -> list[str]:
    """The measured columns of a row."""
    memory = f"{(row.peak_rss_bytes or 0) / 1e6:.0f}"
    common = [f"{row.load_s or 0:.2f}", memory, f"{row.cpu_per_wall() or 0:.2f}"]
    prefill = [prompt * row.batch * 1e9 / ns for ns in row.prefill_ns()]
    if task != "text-generation":
        p50, p90 = (quantile(row.prefill_ns(), q) / 1e6 for q in (0.5, 0.9))
        return [_spread(prefill, 0), f"{p50:.2f} / {p90:.2f}", f"{row.first['prefill_ns'] / 1e6:.1f}", *common]  # type: ignore[index]
    steps = row.decode_ns()
    itl = f"{quantile(steps, 0.5) / 1e6:.2f} / {quantile(steps, 0.9) / 1e6:.2f}" if steps else "-"
    decode = [1e9 / ns for ns in row.decode_medians_ns()]
    ttft = statistics.median(row.prefill_ns()) / 1e6
    return [_spread(prefill, 0), _spread(decode) if decode else "-", itl, f"{ttft:.1f}", *common]


def speed(row: Row) -> float:
    """What rows are ranked by: the median decode step, or prefill where nothing was generated; less is better."""
    return statistics.median(row.decode_medians_ns() or row.prefill_ns())


def ordered(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Verified rows, fastest first; and the others."""
    verified = sorted((r for r in rows if r.verified and r.rounds), key=speed)
    return verified, [r for r in rows if not (r.verified and r.rounds)]


def explanation(row: Row) -> str:
    """Why a row is not ranked, in a few words; the worst difference for one that is."""
    if row.error:
        return row.error.splitlines()[0]
    bad = [c for c in row.checks if c["verdict"] in ("fail", "unchecked")]
    if row.verified or not bad:
        worst = max((c.get("max_abs") or 0.0 for c in row.checks), default=0.0)
        return f"max |difference| {worst:.1e}"
    check = bad[0]
    difference = f", max |difference| {check['max_abs']:.1e}" if check.get("max_abs") is not None else ""
    return f"{check['name']}: {check['verdict']}{difference} {check.get('note') or ''}".strip()


def lines(rows: list[Row], task: str, prompt: int) -> tuple[list[str], list[list[str]]]:
    """Header and body cells of the whole table."""
    header = ["", *(DECODER if task == "text-generation" else ENCODER), "verdict", "evidence"]
    verified, rest = ordered(rows)
    body = []
    for rank, row in [*enumerate(verified, 1), *((None, r) for r in rest)]:
        measured = cells(row, task, prompt) if row.rounds else ["-"] * (len(header) - 5)
        verdict = row.verdict if row.status == "ok" else row.status
        if row.status == "ok" and not row.plan.ranked:
            verdict = "not a model"
        body.append([str(rank or "-"), row.plan.label, row.plan.precision, *measured, verdict, explanation(row)])
    return header, body


def markdown(rows: list[Row], task: str, prompt: int) -> str:
    """A Markdown table."""
    header, body = lines(rows, task, prompt)
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in [header, rule, *body])


def rich_table(rows: list[Row], task: str, prompt: int, title: str) -> Any:
    """A table for the terminal."""
    from rich.table import Table

    header, body = lines(rows, task, prompt)
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in (1, 2) or i >= len(header) - 2 else "right", overflow="fold")
    colours = {"pass": "green", "near-tie": "yellow"}
    for line in body:
        colour = colours.get(line[-2], "red" if line[-2] in ("fail", "failed") else "dim")
        table.add_row(*line[:-2], f"[{colour}]{line[-2]}[/]", line[-1])
    return table
