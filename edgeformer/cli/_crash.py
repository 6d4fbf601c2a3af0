"""Crash reports: an internal error is written to one file, with no traceback on the terminal."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from edgeformer import __version__

EXIT_CODE = 70
"""Exit code of an internal error: EX_SOFTWARE in sysexits.h."""


def write(error: BaseException) -> str:
    """Write a crash report; returns its path for the message, or the report itself if no file could be written."""
    from edgeformer.files.cache import cache_folder, lock_of
    from edgeformer.files.locks import Held

    text = "\n".join((
        f"edgeformer {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: {sys.argv[1:]!r}",
        "".join(traceback.format_exception(error)),
    ))  # fmt: skip
    name = f"crash-{os.getpid()}.txt"
    ours = cache_folder("crashes")
    for folder in (ours, Path(tempfile.gettempdir())):
        file = folder / name
        try:
            if folder == ours:
                lock_of(file, timeout=1.0).release()  # marks the file as an entry that `cache --clean` may delete
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except (OSError, Held):
            continue
        return str(file)
    return f"this: {text}"
