"""Reports from records: one HTML file that works offline, Markdown, CSV, JSONL."""

from edgeformer.report.formats import FORMATS, write_report
from edgeformer.report.page import write_html

__all__ = ["FORMATS", "write_html", "write_report"]
