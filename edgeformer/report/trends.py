"""Architecture trends of small language models, by half-year.

The survey of Lu et al. (2024, arXiv 2409.15790) as data, with its known errors marked, and the traits of the named specs.
"""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from importlib.resources import files
from typing import Any

from edgeformer.checkpoint.loading import load
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mla import MLA
from edgeformer.layers.mlp import MLP
from edgeformer.layers.moe import MoE
from edgeformer.report.page import require_packages
from edgeformer.spec import Model, layers
from edgeformer.weights.costs import parameters

TRAITS = ("attention", "ffn", "activation", "norm")
_NORMS = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "offset_rms_norm": "RMSNorm"}


def survey() -> list[dict[str, Any]]:
    """A row per model: the survey's columns (`*_survey`), and the `traits` of its named spec if there is one."""
    text = (files("edgeformer.models") / "survey.csv").read_text(encoding="utf-8")
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        year, month = row["release"].split(".")
        made = {
            "model": row["model"].rsplit("/", 1)[-1],
            "half": f"{year} H{1 if int(month) <= 6 else 2}",
            "attention_survey": row["attention"],
            "activation_survey": row["activation"],
            "ratio_survey": _number(row["ffn_ratio"]),
            "error": row["error"],
            "named": row["named"],
        }
        rows.append(made | (traits(load(row["named"]).spec) if row["named"] else {}))
    return rows


def traits(spec: Model) -> dict[str, Any]:
    """A spec's attention, FFN, activation, norm, FFN ratio and number of parameters."""
    found = [layer for _, layer, _ in layers(spec)]
    attention = next(a for a in found if isinstance(a, (GQA, MLA)))
    ffn = next(layer for layer in found if isinstance(layer, (GLU, MLP, MoE)))
    norm = spec.norm or next((layer for layer in found if isinstance(layer, LayerNorm)), None)  # type: ignore[attr-defined]
    hidden = [hidden for layer in found if (hidden := layer.ffn_width()) is not None]
    return {
        "attention": _attention(attention),
        "ffn": "experts" if isinstance(ffn, MoE) else "gated" if isinstance(ffn, GLU) else "plain",
        "activation": ffn.act if isinstance(ffn.act, str) else ffn.act.kind,
        "norm": _NORMS.get(norm.kind, norm.kind) if norm is not None else "none",
        "ratio": round(sum(hidden) / len(hidden) / spec.width, 2),
        "parameters": parameters(spec),
    }


def _attention(layer: GQA | MLA) -> str:
    if isinstance(layer, MLA):
        return "MLA"
    if layer.kv_heads == layer.heads:
        return "MHA"
    return "MQA" if layer.kv_heads == 1 else "GQA"


def _number(text: str) -> float | None:
    """A ratio, or None; the survey writes 0 where it differs from layer to layer."""
    try:
        return float(text) or None
    except ValueError:
        return None


def counts(rows: list[dict[str, Any]], trait: str) -> dict[str, Counter]:
    """Half-year -> number of models with each value of a trait."""
    found: dict[str, Counter] = {}
    for row in sorted(rows, key=lambda row: row["half"]):
        if trait in row:
            found.setdefault(row["half"], Counter())[row[trait]] += 1
    return found


def page() -> str:
    """The HTML page: a figure per trait, the FFN ratios with the survey's wrong ones marked, and the list of errors.

    Raises:
        RuntimeUnavailable: Altair or vl-convert isn't installed.
    """
    require_packages()
    import altair as alt

    rows = survey()
    built = [row for row in rows if row["named"]]
    data = alt.Data(values=built)  # pyright: ignore[reportCallIssue]
    bars = [
        alt.Chart(data, title=trait, width=300, height=180)
        .mark_bar()
        .encode(
            x=alt.X("half:O", title=None),
            y=alt.Y("count():Q", title="models"),
            color=alt.Color(f"{trait}:N", title=None),
            tooltip=["half:O", f"{trait}:N", "count():Q"],
        )
        for trait in TRAITS
    ]
    wrong = "isValid(datum.ratio_survey) && abs(datum.ratio_survey - datum.ratio) > 0.1"
    base = alt.Chart(data, title="FFN width / hidden width", width=700, height=240)
    x = alt.X("half:O", title=None)
    hints = ["model:N", "ratio:Q", "ratio_survey:Q", "error:N"]
    ours = base.mark_circle(size=70, opacity=0.6).encode(
        x=x, y=alt.Y("ratio:Q", title="ratio"), color="ffn:N", tooltip=hints
    )
    theirs = (
        base.transform_filter(wrong)
        .mark_point(shape="cross", size=90, color="crimson")
        .encode(x=x, y=alt.Y("ratio_survey:Q", title="ratio"), tooltip=hints)
    )
    figure = alt.vconcat(
        alt.hconcat(*bars[:2]).resolve_scale(color="independent"),
        alt.hconcat(*bars[2:]).resolve_scale(color="independent"),
        ours + theirs,
    ).resolve_scale(color="independent")
    return _PAGE.format(
        figure=figure.to_html(inline=True, fullhtml=False, output_div="figure"),
        count=len(built),
        errors="".join(
            f"<tr><td>{html.escape(row['model'])}</td><td>{html.escape(row['half'])}</td>"
            f"<td>{html.escape(row['error'])}</td></tr>"
            for row in rows
            if row["error"]
        ),
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Small language models: trends</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{border-top:1px solid #ccc;padding:.2rem .6rem;text-align:left;vertical-align:top}}
#figure{{overflow-x:auto}}</style></head><body>
<h1>What small language models are made of</h1>
<p>{count} models of the survey of Lu et al. (arXiv 2409.15790), by half-year of release. Bars and circles are from edgeformer's
named specs; red crosses are the survey's own FFN ratios where they differ by more than 0.1.</p>
{figure}
<h2>Known errors in the survey's table, and omissions</h2>
<table><tr><th>model</th><th>release</th><th>error or omission</th></tr>{errors}</table>
</body></html>
"""
