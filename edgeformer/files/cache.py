"""The user's cache folder: artefacts made by comparisons, unfinished runs, models copied by --host, ONNX Runtime Web. Everything
but the unfinished runs can be made again.

`EDGEFORMER_CACHE` overrides the system's location.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgeformer.files.digests import folder_digests
from edgeformer.files.locks import Held, Lock
from edgeformer.files.scratch import PARTIAL, leftovers

PARTS = {
    "artefacts": "exports made by `compare`",
    "kernels": "edgeformer's native kernels for ONNX Runtime, built on this machine",
    "runs": "interrupted measurements; --resume continues them",
    "models": "models copied to this machine by --host",
    "web": "ONNX Runtime Web, from npm",
    "crashes": "records of edgeformer's own faults, for bug reports",
}

MARK = b"an entry of edgeformer's cache\n"
_LOCK = ".lock"
_MANIFEST = "edgeformer.json"  # `verify` writes its verdict there
_NPM = ("node_modules", "package.json", "package-lock.json")


def cache_folder(part: str) -> Path:
    """The folder of a part of the cache; it may not exist yet."""
    base = os.environ.get("EDGEFORMER_CACHE")
    return (Path(base) if base else Path(platformdirs.user_cache_dir("edgeformer", appauthor=False))) / part


@dataclass(frozen=True)
class Entry:
    """One entry of the cache. `used` is the time of its last use, in seconds since the epoch."""

    part: str
    path: Path
    bytes: int
    used: float


def entries() -> list[Entry]:
    """All entries, the least recently used first."""
    found = []
    for part in PARTS:
        folder = cache_folder(part)
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []:
            with contextlib.suppress(FileNotFoundError):  # another process may be cleaning up
                if _is_ours(part, path):
                    found.append(Entry(part, path, _bytes(path), path.lstat().st_mtime))
    return sorted(found, key=lambda e: e.used)


def _is_ours(part: str, path: Path) -> bool:
    """Whether edgeformer made this entry: the mark lies beside it, or a killed process left it."""
    if path.name.endswith(_LOCK):
        return False
    if part == "web":  # installed by npm, with the command that edgeformer prints
        return path.name in _NPM and _only_web(path.with_name("package.json"))
    if path in leftovers(path.parent):
        return True
    mark = lock_file(path)
    return mark.is_file() and not mark.is_symlink() and mark.read_bytes()[: len(MARK)] == MARK


def _only_web(package: Path) -> bool:
    """Whether a package.json is the one that this command leaves, not a project of the user's."""
    try:
        data = json.loads(package.read_bytes()[:10_000])
    except (OSError, ValueError):
        return False
    return (
        isinstance(data, dict) and data.keys() == {"dependencies"} and set(data["dependencies"]) == {"onnxruntime-web"}
    )


def _bytes(path: Path) -> int:
    """Bytes that deleting it would free; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(f.lstat().st_size for f in path.rglob("*") if not f.is_dir() or f.is_symlink())


def lock_file(path: Path) -> Path:
    """The file beside an entry that marks it as edgeformer's, locked by processes that make, use or delete it."""
    return path.with_name(path.name + _LOCK)


def lock_of(path: Path, *, shared: bool = False, timeout: float | None = None) -> Lock:
    """Lock an entry: exclusively to make or delete it, shared to use it. The first lock marks it as edgeformer's.

    Raises:
        Held: another process still holds it after `timeout`.
        OSError: the cache can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, file = Lock(lock_file(path), shared=shared, timeout=timeout), lock_file(path)
    try:
        if file.stat().st_size == 0:
            file.write_bytes(MARK)
    except BaseException:
        lock.release()
        raise
    return lock


def remember_content(folder: Path) -> None:
    """Store the digests of an entry's files beside it. The caller holds the exclusive lock."""
    lock_file(folder).write_bytes(MARK + json.dumps(_digests(folder)).encode())


def changed_file(folder: Path) -> str | None:
    """The name of a file of an entry that has changed since the entry was made, or None. Reads every byte: sizes and times
    prove nothing."""
    try:
        known = json.loads(lock_file(folder).read_bytes().removeprefix(MARK))
    except (OSError, ValueError):
        known = {}
    now = _digests(folder)
    return next((n for n in sorted(known.keys() | now.keys()) if known.get(n) != now.get(n)), None)


def _digests(folder: Path) -> dict[str, str]:
    return folder_digests(folder, (_MANIFEST,))


def touch(path: Path) -> None:
    """Record that an entry was used now."""
    os.utime(path)


def clean(*, parts: tuple[str, ...], older_than_days: float = 0.0) -> list[Entry]:
    """Delete edgeformer's entries that are not in use and were not used for `older_than_days`; returns the deleted ones.

    Links are deleted, never followed.

    Raises:
        OSError: an entry can't be deleted.
    """
    limit = time.time() - older_than_days * 86400
    gone = []
    for entry in entries():
        if entry.part not in parts or entry.used > limit:
            continue
        partial = entry.path.name.endswith((PARTIAL, PARTIAL + ".new"))
        try:
            lock = Lock(entry.path, timeout=0) if partial else lock_of(entry.path, timeout=0)
        except Held:
            continue
        try:
            if entry.path.is_dir() and not entry.path.is_symlink():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
            gone.append(entry)
            lock_file(entry.path).unlink(missing_ok=True)
        finally:
            lock.release()
    return gone
