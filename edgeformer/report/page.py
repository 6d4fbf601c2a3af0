"""The HTML report: one self-contained file with its data, figures and scripts; it loads nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
from importlib.resources import files
from typing import Any

import edgeformer
from edgeformer.errors import RuntimeUnavailable
from edgeformer.files.atomic import write_output
from edgeformer.report.frame import COLUMNS, finite, roofs, rows


def write_html(records: list[dict[str, Any]], file: str | os.PathLike, *, title: str | None = None) -> None:
    """Write the HTML report of records in edgeformer's schema.

    Raises:
        RuntimeUnavailable: Altair or vl-convert isn't installed.
        InputError: the file can't be written; an existing file is left unchanged.
    """
    write_output(file, html(records, title=title))


def html(records: list[dict[str, Any]], *, title: str | None = None) -> str:
    """The report as an HTML page."""
    from edgeformer.report.charts import specs

    bundle = require_packages().javascript_bundle
    found = rows(records)
    name = title or ", ".join(dict.fromkeys(row["model"] for row in found)) or "no rows"
    data = {
        "rows": found,
        "roofs": roofs(records),
        "records": records,
        "charts": specs(),
        "columns": COLUMNS,
        "version": edgeformer.__version__,
    }
    parts = {
        "TITLE": _escaped(name),
        "STYLE": _asset("page.css"),
        "DATA": json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c"),
        "VEGA": bundle().replace("</script", "<\\/script"),
        "SCRIPT": _asset("page.js"),
    }
    return re.sub(r"%([A-Z]+)%", lambda mark: parts[mark[1]], _asset("page.html"))


def require_packages() -> Any:
    """The module vl_convert; Altair is checked as well.

    Raises:
        RuntimeUnavailable: one of them isn't installed.
    """
    try:
        import altair  # noqa: F401
        import vl_convert
    except ImportError as e:
        raise RuntimeUnavailable(
            f'the HTML report needs Altair and vl-convert ({e}); pip install "edgeformer[report]"'
        ) from e
    return vl_convert


def _asset(name: str) -> str:
    return (files("edgeformer.report") / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
