"""What is kept of a fault of edgeformer's own, for a report: one file, and no traceback on the terminal."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from edgeformer import __version__

EXIT_CODE = 70
"""Of a fault of the program itself, as sysexits.h has it (EX_SOFTWARE)."""


def write(error: BaseException) -> str:
    """Keep what happened; where, for the message."""
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
                lock_of(file, timeout=1.0).release()  # marks it as an entry that `cache --clean` may delete
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except (OSError, Held):
            continue
        return str(file)
    return f"this: {text}"
