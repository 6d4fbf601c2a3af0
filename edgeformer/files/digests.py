"""Digests over every byte of a file, so that no edit goes unnoticed, whatever its size and times."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from edgeformer.errors import CheckpointError

_SETTLED = 2.0
"""Seconds after a change within which a second one may leave the same timestamps."""
_known: dict[tuple[int, ...], str] = {}


def file_digest(file: Path) -> str:
    """The SHA-256 of a file. Read once per process, as long as device, inode, size and both timestamps stay the same.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        with file.open("rb") as f:
            status = os.fstat(f.fileno())
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if key in _known:
                return _known[key]
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from e
    if time.time() - status.st_ctime > _SETTLED:
        _known[key] = found
    return found


def folder_digests(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Path below the folder -> SHA-256, of every file in it.

    Raises:
        CheckpointError: a file can't be read.
    """
    files = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: file_digest(f) for name, f in files.items() if name not in leave_out}
