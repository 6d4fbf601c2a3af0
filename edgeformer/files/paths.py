"""Resolve file names read from files, confined to their folder.

A name that is absolute, climbs out by `..` or leads out through a symbolic link is refused. The one exception is the Hugging
Face cache, whose `snapshots/REVISION` folders link into the `blobs` folder of the same repository.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgeformer.errors import EdgeformerError

_INSIDE = ("1_Pooling", "onnx", "additional_chat_templates")
"""Subfolders of a model's folder that are read from, linked or not."""


def inside(folder: Path, name: object, says: str, error: type[EdgeformerError]) -> Path:
    """The path of `name` below `folder`.

    Args:
        folder: the folder that the path must stay in.
        name: the value as it was read, of any type.
        says: the file or key that holds the name, for messages.
        error: the class to raise.

    Raises:
        error: `name` is not a relative path, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1000:
        raise error(f"{says} must name a file, got {str(name)[:80]!r}")
    # a name written on Windows climbs out by backslashes
    both = PurePosixPath(name), PureWindowsPath(name)
    if any(p.is_absolute() or p.drive or ".." in p.parts for p in both):
        raise error(f"{says} names {name!r}, which lies outside {folder}; only files in that folder are read")
    path = folder / name
    _check_link(folder, path, says, error)
    return path


def _check_link(folder: Path, path: Path, says: str, error: type[EdgeformerError]) -> None:
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as e:  # a loop of links, or too long a name
        raise error(f"{says} names {path.name[:80]!r}, which can't be resolved: {e}") from e
    if real.is_relative_to(home) or ((blobs := _blobs(home)) is not None and real.is_relative_to(blobs)):
        return
    raise error(
        f"{path} is a link to {real}, outside {folder}; a model's files are read only from its own folder. Put the file itself"
        " there, or a hard link"
    )


def _blobs(home: Path) -> Path | None:
    """The folder that the snapshots of a Hugging Face cache link into; None for any other folder."""
    parts = home.parts
    if "snapshots" not in parts:
        return None
    repository = Path(*parts[: len(parts) - 1 - parts[::-1].index("snapshots")])
    return repository / "blobs" if repository.name.startswith(("models--", "datasets--")) else None


def check_links(folder: Path, error: type[EdgeformerError]) -> None:
    """Refuse a model's folder that holds a link to a file outside it, which would be read or copied as if it were the model's.

    Raises:
        error: there is such a link (the message names it), or the folder can't be read.
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
    """The status of a file that is to be read, checked to be regular: reading a pipe or a device could hang or never end.

    Raises:
        error: the file is missing, can't be reached, or is not regular.
    """
    try:
        status = file.stat()
    except OSError as e:
        raise error(f"can't read {file}: {e.strerror}") from e
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{file} is not a regular file")
    return status
