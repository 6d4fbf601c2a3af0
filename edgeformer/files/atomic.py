"""Replace files and folders atomically: after a kill or a power failure, either the old or the new one is there, complete.

New content is synced to disk before it is renamed into place. A folder is exchanged with the existing one by one system call,
where the system and the file system support it; otherwise by two renames, recorded beforehand in a journal beside the folder,
which `repair` completes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import stat
import sys
from pathlib import Path

from edgeformer.errors import InputError
from edgeformer.files.locks import Held, Lock, held
from edgeformer.files.scratch import PARTIAL

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_AT_FDCWD = -100
_UNKNOWN = frozenset((errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))


def sync(path: Path) -> None:
    """Sync a file, or a folder and everything below it, to disk."""
    paths = [path]
    if path.is_dir():
        paths = [Path(base, name) for base, _, names in os.walk(path) for name in names]
        paths += [Path(base) for base, _, _ in os.walk(path)]
    for each in paths:
        if each.is_symlink():
            continue
        try:
            handle = os.open(each, os.O_RDONLY)
        except PermissionError:
            continue  # a linked checkpoint's file that this user has no access to
        try:
            os.fsync(handle)
        except OSError as e:
            if e.errno not in _UNKNOWN:  # some file systems can't sync folders
                raise
        finally:
            os.close(handle)


def replace_folder(new: Path, folder: Path) -> Path | None:
    """Replace `folder` by the folder `new`, atomically and durably.

    Returns:
        Where the old content now lies, for the caller to delete; None if there was none.

    Raises:
        OSError: the replacement failed; `folder` is unchanged.
    """
    sync(new)
    with held(folder.parent, optional=True):  # processes that replace the same folder take turns
        _repair(folder)
        old = None
        if not _exists(folder):
            os.replace(new, folder)
        elif _exchange(new, folder):
            old = new
        else:
            old = _replace_in_two_steps(new, folder)
        sync_folder(folder.parent)
    return old


def sync_folder(folder: Path) -> None:
    """Sync a folder's directory entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno not in _UNKNOWN:
            raise
    finally:
        os.close(handle)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically; False where the system can't."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE))
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(names[0], names[1], ctypes.c_uint(_EXCHANGE))
    else:
        return False
    if not failed:
        return True
    if (code := ctypes.get_errno()) in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _journal(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replacing")


def _replace_in_two_steps(new: Path, folder: Path) -> Path:
    old = new.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL}")  # `sweep` deletes it if nothing else does
    replace_file(_journal(folder), json.dumps({"new": new.name, "old": old.name}).encode())
    os.rename(folder, old)  # noqa: PTH104
    try:
        os.rename(new, folder)  # noqa: PTH104
    except OSError:
        os.rename(old, folder)  # noqa: PTH104
        _journal(folder).unlink()
        raise
    sync_folder(folder.parent)
    _journal(folder).unlink()
    return old


def repair(folder: Path) -> None:
    """Complete a replacement that a killed process began: afterwards `folder` exists, if it ever did.

    Raises:
        OSError: the repair failed.
    """
    _sweep_files(folder.parent, f".{_journal(folder).name[:100]}.")
    if _exists(_journal(folder)):
        with held(folder.parent, optional=True):
            _repair(folder)


def _repair(folder: Path) -> None:
    journal = _journal(folder)
    if not _exists(journal):
        return
    try:
        names = json.loads(journal.read_bytes()[:10_000])
        new, old = (folder.with_name(names[key]) for key in ("new", "old"))
        if not all(p.name.startswith(f".{folder.name}.") for p in (new, old)):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        return  # not edgeformer's journal: left alone, since it does no harm
    if not _exists(folder):
        for candidate in (new, old):  # the new one was complete before anything was renamed
            if _exists(candidate):
                os.rename(candidate, folder)  # noqa: PTH104
                break
    if _exists(folder):
        if _exists(old):
            shutil.rmtree(old, ignore_errors=True)
        sync_folder(folder.parent)
        journal.unlink(missing_ok=True)


def replace_file(file: Path, content: bytes) -> None:
    """Write a file atomically: the content is on disk before it is renamed into place.

    Only a regular file is replaced. Pipes and devices, such as /dev/stdout, are written to directly; a link stays, and its
    target is replaced.

    Raises:
        OSError: the file can't be written; the old content is still there.
    """
    if is_stream(file):
        with file.open("wb") as stream:
            stream.write(content)
        return
    file = Path(os.path.realpath(file))
    start = f".{file.name[:100]}."
    _sweep_files(file.parent, start)
    partial, lock = _new_partial(file, start)
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            partial.chmod(stat.S_IMODE(file.stat().st_mode))
        os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    finally:
        lock.release()
    sync_folder(file.parent)


def _new_partial(file: Path, start: str) -> tuple[Path, Lock]:
    """A new, locked file beside another. If a sweep locks it between its creation and the lock, another one is made."""
    while True:
        partial = file.with_name(f"{start}{secrets.token_hex(4)}{PARTIAL}")
        with contextlib.suppress(Held):
            return partial, Lock(partial, timeout=0, optional=True)


def write_output(file: str | os.PathLike, text: str, *, folders: bool = False) -> None:
    """Write a file that the user named, by `replace_file`; `folders`: make missing parent folders.

    Raises:
        InputError: the file can't be written; the old content is still there.
    """
    path = Path(file)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write")
    try:
        if folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as e:
        raise InputError(f"can't write {path}: {e.strerror}; choose another path") from e


def _sweep_files(folder: Path, start: str) -> None:
    """Delete the partial files of killed processes; a live process holds its file's lock."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - glob would interpret the name as a pattern
            if name.startswith(start) and name.endswith(PARTIAL) and len(name) == len(start) + 8 + len(PARTIAL):
                file = folder / name
                if file.is_symlink() or not file.is_file():
                    continue
                with contextlib.suppress(Held, OSError), held(file, timeout=0):
                    file.unlink(missing_ok=True)


def is_stream(file: str | os.PathLike) -> bool:
    """Whether a path can be written to but not replaced: a pipe, a device, or an open file under /dev or /proc."""
    try:
        kind = Path(file).stat().st_mode
    except OSError:
        return False
    if stat.S_ISREG(kind):
        return str(Path(file).absolute()).startswith(("/dev/", "/proc/"))
    return not stat.S_ISDIR(kind)
