"""Reports from records: one HTML file that works offline, Markdown, CSV, JSONL."""

FORMATS = ("html", "markdown", "csv", "jsonl", "llama-bench")
"""What a report can be written as."""
