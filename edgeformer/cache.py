"""The user's cache folder: artefacts that comparisons made, unfinished runs, models brought here, ONNX Runtime Web. All but the
unfinished runs can be made again.

`EDGEFORMER_CACHE` names another place than the system's.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

PARTS = {
    "artefacts": "exports that `compare` made",
    "kernels": "our native kernels for ONNX Runtime, built here",
    "runs": "measurements that were interrupted; --resume goes on with them",
    "models": "models brought here by --host",
    "web": "ONNX Runtime Web, from npm",
}


def cache_folder(part: str) -> Path:
    """Where a part of the cache lies; it may not exist yet."""
    base = os.environ.get("EDGEFORMER_CACHE")
    return (Path(base) if base else Path(platformdirs.user_cache_dir("edgeformer", appauthor=False))) / part


@dataclass(frozen=True)
class Entry:
    """One thing in the cache. `used` is when it was last used, in seconds since the epoch."""

    part: str
    path: Path
    bytes: int
    used: float


def entries() -> list[Entry]:
    """What is there, the least recently used first."""
    found = []
    for part in PARTS:
        folder = cache_folder(part)
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix == ".lock":
                continue
            try:
                files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and not f.is_symlink()]
                found.append(Entry(part, path, sum(f.stat().st_size for f in files), path.stat().st_mtime))
            except FileNotFoundError:
                continue  # somebody else cleans up, too
    return sorted(found, key=lambda e: e.used)


def lock_of(path: Path) -> FileLock:
    """Held by whoever makes or measures an entry."""
    return FileLock(path.with_name(path.name + ".lock"))


def touch(path: Path) -> None:
    """Remember that an entry was used now."""
    os.utime(path)


def clean(*, parts: tuple[str, ...], older_than_days: float = 0.0) -> list[Entry]:
    """Delete what was not used for so many days and isn't in use now; what was deleted.

    Raises:
        OSError: something can't be deleted.
    """
    limit = time.time() - older_than_days * 86400
    gone = []
    for entry in entries():
        if entry.part not in parts or entry.used > limit:
            continue
        lock = lock_of(entry.path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
            gone.append(entry)
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
    return gone
