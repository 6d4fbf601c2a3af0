"""Scratch folders, which are filled, then renamed or deleted. One that a killed process leaves is deleted by a later process.

Each is locked while its process lives. It is created under a name ending in `.new` and renamed once it is locked, so a folder
without a lock was left behind, whatever its age.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edgeformer.files.locks import Held, Lock

PARTIAL = ".partial"
_NEW, _NEW_S = ".new", 60.0
_TEMPORARY = "edgeformer-"
_MARK = ".edgeformer-scratch"
"""The file that marks a temporary folder as edgeformer's, in a parent folder that all programs share."""


@contextlib.contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A folder `.NAME.*.partial` beside `folder`, which the block may rename; what is left of it is deleted on exit.

    Earlier ones whose process has ended are deleted first.

    Raises:
        OSError: the folder can't be made.
    """
    sweep(folder)
    made, lock = _made(folder.parent, f".{folder.name}.", PARTIAL)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        lock.release()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary folder, deleted on exit. Those left by killed runs are deleted first."""
    parent = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for found in parent.glob(f"{_TEMPORARY}*"):
            if (found / _MARK).is_file() and not found.is_symlink():
                _delete_unheld(found, found / _MARK)
    made, lock = _made(parent, _TEMPORARY, "", _MARK)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        lock.release()


def sweep(folder: Path) -> list[Path]:
    """Delete the partial folders beside `folder` that no live process holds; returns the deleted ones."""
    return [found for found in leftovers(folder.parent, folder.name) if _delete_unheld(found)]


def leftovers(parent: Path, name: str = "*") -> list[Path]:
    """Partial folders in `parent` of the output `name` (by default of any), held or not."""
    pattern = name if name == "*" else name.translate({ord(c): f"[{c}]" for c in "*?["})
    try:
        found = [f for f in parent.glob(f".{pattern}.????????{PARTIAL}") if f.is_dir() and not f.is_symlink()]
        for new in parent.glob(f".{pattern}.????????{PARTIAL}{_NEW}"):
            if not new.is_symlink() and new.is_dir() and time.time() - new.stat().st_mtime > _NEW_S:
                found.append(new)
    except OSError:
        return []
    return found


def _made(parent: Path, prefix: str, suffix: str, mark: str = "") -> tuple[Path, Lock]:
    """A new, locked folder. With a mark, the lock is a file inside it (replacing a folder locks its parent)."""
    new = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix + _NEW, dir=parent))
    lock = Lock(new / mark, timeout=0, optional=True)
    made = new.with_name(new.name.removesuffix(_NEW))
    try:
        os.rename(new, made)  # noqa: PTH104 - an mkdtemp name without its ending is as unlikely to be taken
    except BaseException:
        lock.release()
        shutil.rmtree(new, ignore_errors=True)
        raise
    return made, lock


def _delete_unheld(folder: Path, locked: Path | None = None) -> bool:
    try:
        lock = Lock(locked or folder, timeout=0)
    except (Held, OSError):
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        lock.release()
