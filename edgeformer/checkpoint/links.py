"""Files that an artefact links to instead of storing: hard links in its folder, or paths of files on another file system.

The manifest holds their fingerprints; a file that differs is not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.manifest import Fingerprint, Linked
from edgeformer.errors import ArtefactError
from edgeformer.files.paths import check_regular, inside
from edgeformer.files.quoting import shown
from edgeformer.files.typed import mismatch

_SAMPLES, _SAMPLE = 64, 4096


def fingerprint(file: Path) -> Fingerprint:
    """The fingerprint of a linked file: size, modification time, and a digest of its first MiB and 64 spread-out samples.

    Samples, because a 14 GB checkpoint must link in seconds.
    """
    size = file.stat().st_size
    h = hashlib.sha256()
    with file.open("rb") as f:
        h.update(f.read(1 << 20))
        for i in range(_SAMPLES):
            f.seek(max((size - _SAMPLE) * i // (_SAMPLES - 1), 0))
            h.update(f.read(_SAMPLE))
    return {"bytes": size, "samples_sha256": h.hexdigest()[:32], "mtime_ns": file.stat().st_mtime_ns}


def linked_files(folder: Path, linked: Mapping[str, Any]) -> dict[str, Path]:
    """Location -> path of the files that a manifest's `linked` names; they may not exist.

    Raises:
        ArtefactError: an entry is damaged: a field is missing or of another type, or the path names another file.
    """
    found = {}
    for name, entry in linked.items():
        says = f"the manifest of {folder}"
        where = inside(folder, name, says, ArtefactError)
        if (wrong := mismatch(entry, Linked, f"linked.{shown(name)}")) is not None:
            raise ArtefactError(f"{says} is damaged: {wrong}; export again")
        path = Path(entry["path"])
        if not entry["hard_link"] and (not path.is_absolute() or path.name != name or ".." in path.parts):
            raise ArtefactError(
                f"{says} is damaged: the link {name[:80]!r} names another file, {entry['path'][:200]!r}"
            )
        found[name] = where if entry["hard_link"] else path
    return found


def check_linked(folder: Path, linked: Mapping[str, Any]) -> dict[str, Path]:
    """`linked_files`, each compared with its fingerprint in the manifest.

    Raises:
        ArtefactError: a file is gone or has changed; the message names it and what changed.
    """
    files = linked_files(folder, linked)
    for name, file in files.items():
        entry = linked[name]
        if not file.exists():
            raise ArtefactError(f"the linked file {file} is gone; export again, or with --weights copy")
        check_regular(file, ArtefactError)
        now = fingerprint(file)
        if now["bytes"] != entry["bytes"] or now["samples_sha256"] != entry["samples_sha256"]:
            raise ArtefactError(
                f"the linked file {file} changed since the export (size {entry['bytes']} -> {now['bytes']}); its weights"
                " are no longer the ones that were exported. Export again, or with --weights copy"
            )
        if now["mtime_ns"] != entry["mtime_ns"]:
            raise ArtefactError(
                f"the linked file {file} was written to since the export (its modification time changed); export again,"
                " or with --weights copy to be independent of it"
            )
    return files
