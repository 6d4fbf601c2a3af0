"""The user's cache folder: artefacts that comparisons made, unfinished runs, models brought here, ONNX Runtime Web. All but the
unfinished runs can be made again.

`EDGEFORMER_CACHE` names another place than the system's.
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
    "artefacts": "exports that `compare` made",
    "kernels": "our native kernels for ONNX Runtime, built here",
    "runs": "measurements that were interrupted; --resume goes on with them",
    "models": "models brought here by --host",
    "web": "ONNX Runtime Web, from npm",
    "crashes": "what is kept of faults of edgeformer's own, for a report",
}

MARK = b"an entry of edgeformer's cache\n"
_LOCK = ".lock"
_MANIFEST = "edgeformer.json"  # `verify` writes its verdict there
_NPM = ("node_modules", "package.json", "package-lock.json")


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
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []:
            with contextlib.suppress(FileNotFoundError):  # somebody else cleans up, too
                if _is_ours(part, path):
                    found.append(Entry(part, path, _bytes(path), path.lstat().st_mtime))
    return sorted(found, key=lambda e: e.used)


def _is_ours(part: str, path: Path) -> bool:
    """Whether edgeformer put this there: it wrote the mark beside it, or left it when it was killed."""
    if path.name.endswith(_LOCK):
        return False
    if part == "web":  # npm put it there, by the command that we print
        return path.name in _NPM and _only_web(path.with_name("package.json"))
    if path in leftovers(path.parent):
        return True
    mark = lock_file(path)
    return mark.is_file() and not mark.is_symlink() and mark.read_bytes()[: len(MARK)] == MARK


def _only_web(package: Path) -> bool:
    """Whether a package.json is what that command leaves, and no project of the user's."""
    try:
        data = json.loads(package.read_bytes()[:10_000])
    except (OSError, ValueError):
        return False
    return (
        isinstance(data, dict) and data.keys() == {"dependencies"} and set(data["dependencies"]) == {"onnxruntime-web"}
    )


def _bytes(path: Path) -> int:
    """What would be freed; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(f.lstat().st_size for f in path.rglob("*") if not f.is_dir() or f.is_symlink())


def lock_file(path: Path) -> Path:
    """The file beside an entry that marks it as edgeformer's, and that is locked by those who make, use or delete the entry."""
    return path.with_name(path.name + _LOCK)


def lock_of(path: Path, *, shared: bool = False, timeout: float | None = None) -> Lock:
    """Lock an entry: exclusively to make or delete it, shared to use it. The first time this marks it as edgeformer's.

    Raises:
        Held: another process has locked it, and the time is over.
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
    """Keep the digests of an entry's files beside it. Called by whoever holds it exclusively."""
    lock_file(folder).write_bytes(MARK + json.dumps(_digests(folder)).encode())


def changed_file(folder: Path) -> str | None:
    """The name of a file of an entry that is not what it was when it was made, None if all are. Reads every byte: sizes and
    times prove nothing."""
    try:
        known = json.loads(lock_file(folder).read_bytes().removeprefix(MARK))
    except (OSError, ValueError):
        known = {}
    now = _digests(folder)
    return next((n for n in sorted(known.keys() | now.keys()) if known.get(n) != now.get(n)), None)


def _digests(folder: Path) -> dict[str, str]:
    return folder_digests(folder, (_MANIFEST,))


def touch(path: Path) -> None:
    """Remember that an entry was used now."""
    os.utime(path)


def clean(*, parts: tuple[str, ...], older_than_days: float = 0.0) -> list[Entry]:
    """Delete what edgeformer put there, was not used for so many days, and isn't in use now; what was deleted.

    Links are deleted, never followed.

    Raises:
        OSError: something can't be deleted.
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
