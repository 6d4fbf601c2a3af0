"""Python's own library as a text, less what a held-out text has of it."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def library_sources(held_out: str, *folders: str) -> list[str]:
    """The sources of this interpreter's library that `held_out` does not contain: its modules, and those of these packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for folder in (".", *folders) for file in sorted((root / folder).glob("*.py"))]
    texts = (file.read_text(encoding="utf-8", errors="ignore") for file in files)
    return [text for text in texts if text[:2000] not in held_out]
