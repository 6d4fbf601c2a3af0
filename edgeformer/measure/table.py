"""The comparison as a table: verified rows ranked, everything else listed below with the reason."""

from __future__ import annotations

import statistics
from typing import Any

from edgeformer.measure.row import Row, quantile

MEASURED = {
    "text-generation": ("prompt", "prefill tok/s", "decode tok/s", "ITL ms p50/p90", "TTFT ms"),
    "feature-extraction": ("batch × tokens", "tokens/s", "latency ms p50/p90", "first call ms"),
}
COMMON = ("load s", "peak MB", "CPU/wall")


def _spread(rates: list[float], digits: int = 1) -> str:
    """median ± half the range; the median alone of a single sample."""
    if len(rates) == 1:
        return f"{rates[0]:.{digits}f}"
    half = (max(rates) - min(rates)) / 2
    return f"{statistics.median(rates):.{digits}f} ± {half:.{digits}f}"


def shape(row: Row, task: str) -> str:
    """What the row was given."""
    return str(row.plan.prompt) if task == "text-generation" else f"{row.plan.batch} × {row.plan.prompt}"


def cells(row: Row, task: str) -> list[str]:
    """The measured columns of a row."""
    if not row.rounds:
        return [shape(row, task), *["-"] * (len(MEASURED[task]) - 1 + len(COMMON))]
    common = [f"{row.load_s or 0:.2f}", f"{(row.peak_rss_bytes or 0) / 1e6:.0f}", f"{row.cpu_per_wall() or 0:.2f}"]
    prefill = [row.plan.prompt * row.plan.batch * 1e9 / ns for ns in row.prefill_ns()]
    if task != "text-generation":
        p50, p90 = (quantile(row.prefill_ns(), q) / 1e6 for q in (0.5, 0.9))
        first = row.first["prefill_ns"][0] / 1e6 if row.first else 0.0
        return [shape(row, task), _spread(prefill, 0), f"{p50:.2f} / {p90:.2f}", f"{first:.1f}", *common]
    steps = row.decode_ns()
    itl = f"{quantile(steps, 0.5) / 1e6:.2f} / {quantile(steps, 0.9) / 1e6:.2f}" if steps else "-"
    decode = [1e9 / ns for ns in row.decode_medians_ns()]
    ttft = f"{statistics.median(row.prefill_ns()) / 1e6:.1f}"
    return [shape(row, task), _spread(prefill, 0), _spread(decode) if decode else "-", itl, ttft, *common]


def speed(row: Row) -> float:
    """What rows are ranked by: the median decode step, or prefill where nothing was generated; less is better."""
    return statistics.median(row.decode_medians_ns() or row.prefill_ns())


def ordered(rows: list[Row]) -> tuple[list[tuple[int, Row]], list[Row]]:
    """Verified rows with their rank, shape by shape, the fastest first; and the others."""
    verified: list[tuple[int, Row]] = []
    shapes = dict.fromkeys((r.plan.batch, r.plan.prompt) for r in rows)
    for batch, prompt in shapes:
        same = [r for r in rows if (r.plan.batch, r.plan.prompt) == (batch, prompt) and r.verified and r.rounds]
        verified += enumerate(sorted(same, key=speed), 1)
    return verified, [r for r in rows if not (r.verified and r.rounds)]


def explanation(row: Row) -> str:
    """Why a row is not ranked, in a few words; the worst difference for one that is."""
    if row.error:
        return row.error.splitlines()[0]
    if not row.plan.ranked:
        return "measures the harness"
    if not row.checks:
        return "interrupted before its check" if row.reference else "no reference: give --against MODEL"
    bad = [c for c in row.checks if c["verdict"] in ("fail", "unchecked")]
    if row.verified or not bad:
        worst = max((c["max_abs"] for c in row.checks if c.get("max_abs") is not None), default=0.0)
        remark = "; prefill gives all positions' logits" if row.facts.get("prefill_logits") == "all" else ""
        return f"max |difference| {worst:.1e}{remark}"
    check = bad[0]
    difference = f", max |difference| {check['max_abs']:.1e}" if check.get("max_abs") is not None else ""
    return f"{check['name']}: {check['verdict']}{difference} {check.get('note') or ''}".strip()


def lines(rows: list[Row], task: str) -> tuple[list[str], list[list[str]]]:
    """Header and body cells of the whole table."""
    header = ["", "runtime", "precision", *MEASURED[task], *COMMON, "verdict", "evidence"]
    verified, rest = ordered(rows)
    body = []
    for rank, row in [*verified, *((0, r) for r in rest)]:
        verdict = row.verdict if row.status == "ok" else row.status
        if row.status == "ok" and not row.plan.ranked:
            verdict = "not a model"
        start = [str(rank or "-"), row.plan.label, row.plan.precision]
        body.append([*start, *cells(row, task), verdict, explanation(row)])
    return header, body


def markdown(rows: list[Row], task: str) -> str:
    """A Markdown table."""
    header, body = lines(rows, task)
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in [header, rule, *body])


def rich_table(rows: list[Row], task: str, title: str) -> Any:
    """A table for the terminal."""
    from rich.table import Table

    header, body = lines(rows, task)
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in (1, 2) or i >= len(header) - 2 else "right", overflow="fold")
    colours = {"pass": "green", "near-tie": "yellow"}
    for line in body:
        colour = colours.get(line[-2], "red" if line[-2] in ("fail", "failed") else "dim")
        table.add_row(*line[:-2], f"[{colour}]{line[-2]}[/]", line[-1])
    return table
