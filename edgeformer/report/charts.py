"""A report's figures as Vega-Lite, built with Altair. The page inserts their data, since filters change it.

Every mark carries its row's id, so that a click opens the records behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

    pass

HEIGHT, STEP = 280, 24
_UNRANKED = 0.35


def specs() -> dict[str, dict[str, Any]]:
    """Figure name -> Vega-Lite. The figures read the data sets `rows`, `roofs`, `blocks` and `points`.

    Raises:
        RuntimeUnavailable: Altair isn't installed.
    """
    made = {
        "decode": _bars("decode", "decode tokens per second"),
        "prefill": _bars("prefill", "prefill tokens per second"),
        "context": _context(),
        "pareto": _pareto(),
        "roofline": _roofline(),
        "memory": _memory(),
        "blocks": _blocks(),
    }
    return {name: _plain(chart) for name, chart in made.items()}


def _plain(chart: alt.TopLevelMixin) -> dict[str, Any]:
    spec = chart.to_dict()
    spec.pop("config", None)  # the page's, light or dark
    return spec


def _rows() -> alt.NamedData:
    import altair as alt

    return alt.NamedData(name="rows")


def _tooltip(*more: alt.Tooltip) -> list[alt.Tooltip]:
    import altair as alt

    return [
        alt.Tooltip("label:N", title="row"),
        alt.Tooltip("model:N"),
        alt.Tooltip("machine:N"),
        alt.Tooltip("shape:N"),
        *more,
        alt.Tooltip("verdict:N"),
        alt.Tooltip("note:N", title="flags"),
    ]


def _opacity() -> Mapping[str, Any]:
    import altair as alt

    return alt.condition("datum.ranked", alt.value(1.0), alt.value(_UNRANKED))


def _colour() -> alt.Color:
    import altair as alt

    return alt.Color("runtime:N", legend=None)


def _names() -> alt.Y:
    """The axis of row names, in the order of the data, which the page sorts."""
    import altair as alt

    return alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=260))


def _bars(kind: str, title: str) -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    base = (
        alt.Chart(_rows(), width="container", height=alt.Step(STEP))
        .transform_filter(f"isValid(datum.{kind}_ts)")
        .encode(
            y=_names(),
        )
    )
    tooltip = _tooltip(
        alt.Tooltip(f"{kind}_ts:Q", format=",.1f", title="median"),
        alt.Tooltip(f"{kind}_low:Q", format=",.1f", title="lowest round"),
        alt.Tooltip(f"{kind}_high:Q", format=",.1f", title="highest round"),
    )
    bar = base.mark_bar(cursor="pointer").encode(
        x=alt.X(f"{kind}_ts:Q", title=title), color=_colour(), opacity=_opacity(), tooltip=tooltip
    )
    rule = base.mark_rule(strokeWidth=2).encode(x=f"{kind}_low:Q", x2=f"{kind}_high:Q", tooltip=tooltip)
    place = "datum.rank ? (datum.tie ? '= ' : '') + 'rank ' + datum.rank : datum.verdict"
    text = (
        base.transform_calculate(place=place)
        .mark_text(align="left", dx=5, fontSize=10)
        .encode(x=f"{kind}_high:Q", text="place:N")
    )
    return bar + rule + text if kind == "decode" else bar + rule


def _context() -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    base = (
        alt.Chart(_rows(), width="container", height=HEIGHT)
        .transform_filter("isValid(datum.itl_ms_p50) && datum.batch == 1")
        .encode(
            x=alt.X("context:Q", title="context before the first generated token, tokens"),
            y=alt.Y("itl_ms_p50:Q", title="ms per token, median"),
            color=alt.Color("runtime:N", title=None, legend=alt.Legend(orient="bottom", columns=4)),
            strokeDash=alt.StrokeDash("precision:N", title=None, legend=alt.Legend(orient="bottom", columns=4)),
            detail="label:N",
            tooltip=_tooltip(
                alt.Tooltip("itl_ms_p50:Q", format=".3f", title="median ms"),
                alt.Tooltip("itl_ms_p90:Q", format=".3f", title="90th percentile ms"),
                alt.Tooltip("ttft_ms:Q", format=".1f", title="TTFT ms"),
            ),
        )
    )
    return base.mark_line() + base.mark_circle(size=50, cursor="pointer")


def _pareto() -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    base = alt.Chart(_rows(), width="container", height=HEIGHT).transform_filter(
        "datum.ranked && isValid(datum.kl) && isValid(datum.decode_ts)"
    )
    x = alt.X("kl:Q", title="KL divergence from the original, nats", scale=alt.Scale(type="symlog", constant=1e-4))
    y = alt.Y("decode_ts:Q", title="decode tokens per second")
    points = base.mark_circle(size=90, cursor="pointer").encode(
        x=x,
        y=y,
        color=_colour(),
        tooltip=_tooltip(
            alt.Tooltip("kl:Q", format=".2e"),
            alt.Tooltip("top1:Q", format=".3f", title="top-1 agreement"),
            alt.Tooltip("bits_per_weight:Q", format=".2f"),
            alt.Tooltip("decode_ts:Q", format=",.1f"),
        ),
    )
    front = (
        base.transform_window(
            best="max(decode_ts)",
            sort=[alt.SortField("kl"), alt.SortField("decode_ts", order="descending")],
            frame=[None, 0],
        )
        .transform_filter("datum.decode_ts >= datum.best")
        .mark_line(interpolate="step-after", strokeDash=[4, 3], opacity=0.7)
        .encode(x=x, y=y)
    )
    return front + points


def _roofline() -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    x = alt.X("intensity:Q", scale=alt.Scale(type="log"), title="operations per byte")
    y = alt.Y("gflops:Q", scale=alt.Scale(type="log"), title="billion operations per second")
    lines = (
        alt.Chart(alt.NamedData(name="roofs"))
        .mark_line(opacity=0.7)
        .encode(
            x=x,
            y=y,
            strokeDash=alt.StrokeDash(
                "roof:N", title=None, legend=alt.Legend(orient="bottom", columns=1, labelLimit=320)
            ),
        )
    )
    points = (
        alt.Chart(alt.NamedData(name="points"))
        .mark_point(size=70, filled=True, cursor="pointer")
        .encode(
            x=x,
            y=y,
            color=_colour(),
            shape=alt.Shape("test:N", title=None, legend=alt.Legend(orient="bottom")),
            tooltip=_tooltip(
                alt.Tooltip("test:N"),
                alt.Tooltip("gflops:Q", format=",.1f"),
                alt.Tooltip("fraction:Q", format=".1%", title="fraction of the bound"),
            ),
        )
    )
    return alt.layer(lines, points).properties(width="container", height=HEIGHT)


def _memory() -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    base = (
        alt.Chart(_rows(), width="container", height=alt.Step(STEP))
        .transform_filter("isValid(datum.peak_mb)")
        .encode(y=_names())
    )
    tooltip = _tooltip(
        alt.Tooltip("peak_mb:Q", format=",.0f", title="peak MB"),
        alt.Tooltip("artifact_mb:Q", format=",.0f", title="files or weights MB"),
    )
    peak = base.mark_bar(cursor="pointer").encode(
        x=alt.X("peak_mb:Q", title="peak resident MB; the tick is the size of the files or weights"),
        color=_colour(),
        opacity=_opacity(),
        tooltip=tooltip,
    )
    tick = base.mark_tick(thickness=3, size=16).encode(x="artifact_mb:Q", tooltip=tooltip)
    return peak + tick


def _blocks() -> alt.Chart:
    import altair as alt

    order = ["attention", "ffn", "norm", "head", "other"]
    return (
        alt.Chart(alt.NamedData(name="blocks"), width="container", height=alt.Step(STEP))
        .mark_bar(cursor="pointer")
        .encode(
            y=_names(),
            x=alt.X("share:Q", title="share of time", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("block:N", sort=order, title=None, legend=alt.Legend(orient="bottom")),
            order="order:Q",
            tooltip=_tooltip(alt.Tooltip("block:N"), alt.Tooltip("share:Q", format=".1%")),
        )
    )
