"""The comparison as a table: verified rows ranked, all others listed below with the reason."""

from __future__ import annotations

import statistics
from typing import Any

from edgeformer.files.quoting import plain
from edgeformer.measure.harness import Run
from edgeformer.measure.ranking import ranks, speed
from edgeformer.measure.row import Row, quantile
from edgeformer.spec.task import Task

MEASURED = {
    Task.TEXT_GENERATION: ("shape", "prefill tok/s", "decode tok/s", "ITL ms p50/p90", "TTFT ms"),
    Task.TEXT2TEXT_GENERATION: ("shape", "encode tok/s", "decode tok/s", "ITL ms p50/p90", "first token ms"),
    Task.FEATURE_EXTRACTION: ("shape", "tokens/s", "latency ms p50/p90", "first call ms"),
}
COMMON = ("load s", "peak MB", "CPU/wall")


def _spread(rates: list[float], digits: int = 1) -> str:
    """Format as median ± half the range; a single sample as the sample alone."""
    if len(rates) == 1:
        return f"{rates[0]:.{digits}f}"
    half = (max(rates) - min(rates)) / 2
    return f"{statistics.median(rates):.{digits}f} ± {half:.{digits}f}"


def cells(row: Row, task: Task) -> list[str]:
    """The measured columns of a row."""
    shape = row.shape
    if not row.rounds:
        return [shape.text(), *["-"] * (len(MEASURED[task]) - 1 + len(COMMON))]
    peak, cpus = row.memory.get("peak_rss_bytes"), row.cpu_per_wall()
    common = [
        f"{row.load_s or 0:.2f}",
        "-" if peak is None else f"{peak / 1e6:.0f}",
        "-" if cpus is None else f"{cpus:.2f}",
    ]
    prefill = [shape.prompt * shape.batch * 1e9 / ns for ns in row.prefill_ns()]
    if task == Task.TEXT2TEXT_GENERATION:
        prefill = [shape.prompt * shape.batch * 1e9 / ns for r in row.rounds for ns in r["encode_ns"]]
    if task == Task.FEATURE_EXTRACTION:
        p50, p90 = (quantile(row.prefill_ns(), q) / 1e6 for q in (0.5, 0.9))
        first = row.first["prefill_ns"][0] / 1e6 if row.first else 0.0
        return [shape.text(), _spread(prefill, 0), f"{p50:.2f} / {p90:.2f}", f"{first:.1f}", *common]
    steps = row.decode_ns()
    itl = f"{quantile(steps, 0.5) / 1e6:.2f} / {quantile(steps, 0.9) / 1e6:.2f}" if steps else "-"
    decode = [shape.batch * 1e9 / ns for ns in row.decode_medians_ns()]
    ttft = f"{statistics.median(row.prefill_ns()) / 1e6:.1f}"
    return [shape.text(), _spread(prefill, 0), _spread(decode) if decode else "-", itl, ttft, *common]


def ordered(run: Run) -> tuple[list[tuple[str, Row]], list[Row]]:
    """Ranked rows with their rank (`2=` is a tie), shape by shape, fastest first; and all other rows."""
    ranked: list[tuple[str, Row]] = []
    for result in run.shapes:
        places = ranks(result.rows, result.noise)
        taken = list(places.values())
        same = sorted((r for r in result.rows if id(r) in places), key=speed)
        ranked += [(f"{places[id(r)]}{'=' if taken.count(places[id(r)]) > 1 else ''}", r) for r in same]
    return ranked, [r for r in run.rows if not r.ranked]


def explanation(row: Row) -> str:
    """Why a row isn't ranked, or the largest difference of one that is; then its flags."""
    return "; ".join([_explained(row), *(flag.text for flag in row.flags)])


def _explained(row: Row) -> str:
    if row.error:
        return row.error.splitlines()[0]
    if not row.plan.ranked:
        return "measures the harness"
    if not row.checks:
        return "interrupted before verification" if row.reference else "no reference: give --against MODEL"
    bad = [c for c in row.checks if c["verdict"] in ("fail", "unchecked")]
    if row.verified or not bad:
        twin = "second run, to measure noise; " if row.plan.again else ""
        worst = max((c["max_abs"] for c in row.checks if c.get("max_abs") is not None), default=None)
        ties = [c["note"] for c in row.checks if c["verdict"] == "near-tie" and c.get("note")]
        said = ties[0] if ties else "same tokens"
        same = said if worst is None else f"max |difference| {worst:.1e}"
        remark = "; prefill computes logits at all positions" if row.facts.get("prefill_logits") == "all" else ""
        return f"{twin}{same}{remark}"
    check = bad[0]
    difference = f", max |difference| {check['max_abs']:.1e}" if check.get("max_abs") is not None else ""
    return f"{check['name']}: {check['verdict']}{difference} {check.get('note') or ''}".strip()


def lines(run: Run, task: Task) -> tuple[list[str], list[list[str]]]:
    """Header and body cells of the whole table."""
    header = ["", "runtime", "precision", *MEASURED[task], *COMMON, "verdict", "evidence"]
    verified, rest = ordered(run)
    body = []
    for rank, row in [*verified, *(("-", r) for r in rest)]:
        verdict = row.verdict if row.status == "ok" else row.status
        if row.status == "ok" and not row.plan.ranked:
            verdict = "not a model"
        start = [rank, row.plan.label, row.plan.precision]
        body.append([*start, *cells(row, task), verdict, explanation(row)])
    return header, body


def remarks(run: Run, task: Task) -> list[str]:
    """Notes on the numbers: every shape's noise and flags, and the run's notes."""
    said = []
    for result in run.shapes:
        what = result.shape.text()
        if result.noise is not None and not result.noise.noisy:
            said.append(
                f"{what}: the same row run twice differs by {result.noise.text()} (95 %); rows closer than that tie"
            )
        said += [f"{what}: {flag.text}" for flag in result.flags]
    return said + run.notes


def markdown(run: Run, task: Task) -> str:
    """A Markdown table."""
    header, body = lines(run, task)
    rule = ["---"] * len(header)
    cells = [[plain(c).replace("|", "\\|").replace("\n", " ") for c in line] for line in (header, rule, *body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def rich_table(run: Run, task: Task, title: str) -> Any:
    """A table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    header, body = lines(run, task)
    table = Table(title=escape(title), title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in (1, 2) or i >= len(header) - 2 else "right", overflow="fold")
    colours = {"pass": "green", "near-tie": "yellow"}
    for line in body:
        colour = colours.get(line[-2], "red" if line[-2] in ("fail", "failed") else "dim")
        cells = [escape(plain(cell)) for cell in line]
        table.add_row(*cells[:-2], f"[{colour}]{cells[-2]}[/]", cells[-1])
    return table
