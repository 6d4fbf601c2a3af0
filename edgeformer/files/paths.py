"""Names that come from files, as paths: they stay inside their folder, whatever they say.

A name that is absolute, climbs out by `..` or leads out through a symbolic link is refused. The one exception is the Hugging
Face cache, whose `snapshots/REVISION` folders are links into the `blobs` folder of the same repository.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeformer.errors import EdgeformerError

_INSIDE = ("1_Pooling", "onnx", "additional_chat_templates")
"""Folders below a model's that are read from, whatever links to them."""


def inside(folder: Path, name: Any, says: str, error: type[EdgeformerError]) -> Path:
    """The path of `name`, which the file or key `says` gives, below `folder`.

    Args:
        folder: that it has to lie in.
        name: as it was read, of any type.
        says: what gives the name, for the message.
        error: the class to raise.

    Raises:
        error: it is no relative path, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1000:
        raise error(f"{says} has to name a file, and has {str(name)[:80]!r}")
    # a name written on Windows climbs out by backslashes
    both = PurePosixPath(name), PureWindowsPath(name)
    if any(p.is_absolute() or p.drive or ".." in p.parts for p in both):
        raise error(f"{says} names {name!r}, which lies outside of {folder}; only files of that folder are read")
    path = folder / name
    _check_link(folder, path, says, error)
    return path


def _check_link(folder: Path, path: Path, says: str, error: type[EdgeformerError]) -> None:
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as e:  # a loop of links, or a name that is too long
        raise error(f"{says} names {path.name[:80]!r}, which can't be followed: {e}") from e
    if real.is_relative_to(home) or ((blobs := _blobs(home)) is not None and real.is_relative_to(blobs)):
        return
    raise error(
        f"{path} is a link to {real}, outside of {folder}; a model's files are read from its own folder. Put the file itself"
        " there, or a hard link"
    )


def _blobs(home: Path) -> Path | None:
    """The folder that the links of a Hugging Face cache's snapshot lead to; None of any other folder."""
    parts = home.parts
    if "snapshots" not in parts:
        return None
    repository = Path(*parts[: len(parts) - 1 - parts[::-1].index("snapshots")])
    return repository / "blobs" if repository.name.startswith(("models--", "datasets--")) else None


def check_links(folder: Path, error: type[EdgeformerError]) -> None:
    """Refuse a model's folder with a file that is a link out of it, so that nothing else is read, or copied along, as if it were
    the model's.

    Raises:
        error: naming the link; or the folder can't be read.
    """
    try:
        with os.scandir(folder) as entries:
            links = [e.name for e in entries if e.is_symlink() and (e.name in _INSIDE or not e.is_dir())]
        for name in _INSIDE:
            if (below := folder / name).is_dir():
                with os.scandir(below) as entries:
                    links += [f"{name}/{e.name}" for e in entries if e.is_symlink()]
    except OSError as e:
        raise error(f"can't read {folder}: {e.strerror}") from e
    for name in links:
        _check_link(folder, folder / name, str(folder), error)


def check_regular(file: Path, error: type[EdgeformerError]) -> os.stat_result:
    """The status of a file that is to be read: opening a pipe or a device would hang, or never end.

    Raises:
        error: it is missing, can't be reached, or is no regular file.
    """
    try:
        status = file.stat()
    except OSError as e:
        raise error(f"can't read {file}: {e.strerror}") from e
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{file} is no regular file")
    return status
