"""Locks that are released when their process ends, however it ends: `flock` on POSIX, the package filelock elsewhere.

The holder of an exclusive lock may delete the lock file: others notice that the file they locked is no longer the one at that
path, and lock the new one. A lock is shared (for use) or exclusive (to make, replace or delete what it protects). Folders can be
locked directly.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Held(Exception):
    """Another process holds the lock."""


class Lock:
    """A lock that is held until `release`, or until the process ends.

    Args:
        path: a file, made if it isn't there, or a folder that exists.
        shared: allow other shared holders.
        optional: continue without the lock where the file system doesn't support it (NFS can't lock folders).
        timeout: seconds to wait; None waits forever, 0 doesn't wait.

    Raises:
        Held: another process still holds it after `timeout`.
        OSError: the path can't be opened or locked.
    """

    def __init__(self, path: Path, *, shared: bool = False, timeout: float | None = None, optional: bool = False):
        self.path, self._other, self._handle = path, None, -1
        if fcntl is None:
            self._acquire_elsewhere(timeout)
            return
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        try:
            while not self._current():
                self.release()
                self._handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
                self._acquire(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, timeout)
        except BaseException as e:
            self.release()
            if not (optional and isinstance(e, OSError)):
                raise

    def _current(self) -> bool:
        """Whether the locked file is still the one at the path: it may have been deleted or replaced before it was locked."""
        if self._handle < 0:
            return False
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._handle)
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def _acquire(self, kind: int, timeout: float | None) -> None:
        assert fcntl is not None
        if timeout is None:
            fcntl.flock(self._handle, kind)
            return
        until = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Held(str(self.path)) from None
                time.sleep(0.02)

    def _acquire_elsewhere(self, timeout: float | None) -> None:
        from filelock import FileLock, Timeout

        path = self.path.with_name(self.path.name + ".lock") if self.path.is_dir() else self.path
        self._other = FileLock(path)
        try:
            self._other.acquire(timeout=-1 if timeout is None else timeout)
        except Timeout:
            raise Held(str(self.path)) from None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._other is not None:
            self._other.release()
        elif self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


@contextlib.contextmanager
def held(path: Path, *, shared: bool = False, timeout: float | None = None, optional: bool = False) -> Iterator[None]:
    """Hold a lock for the block; see `Lock`."""
    with Lock(path, shared=shared, timeout=timeout, optional=optional):
        yield
