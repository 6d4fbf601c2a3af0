"""An artefact: a folder with a model for some runtime and `edgeformer.json`, the manifest that says what it is.

The manifest holds digests of the spec and the weights, what was lowered how, the files and their sizes, the files it links
to with what must not change about them, and the verdict of `edgeformer verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeformer.errors import ArtefactError, ExportError
from edgeformer.serialization import from_json
from edgeformer.spec import Model

MANIFEST, SCHEMA = "edgeformer.json", 1
_SAMPLES, _SAMPLE = 64, 4096
_REQUIRED = {
    **dict.fromkeys(("name", "task", "spec_digest", "weights_digest", "precision", "compute", "target"), str),
    **dict.fromkeys(("files", "linked"), dict),
    "context": int,
}


@contextlib.contextmanager
def writing(folder: Path, *, force: bool = False, keep: Iterable[Path] = ()) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block succeeds, and vanishes when it doesn't.

    An artefact that is already there is replaced; a folder with anything else in it only with `force`. Never replaced: a
    folder that holds one of the `keep` files (the model being exported), and the current folder.

    Raises:
        ExportError: the place is taken, or can't be written to.
    """
    folder = folder.absolute()
    check_place(folder, force, keep)
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        yield scratch
        os.chmod(scratch, 0o755)
        _swap(scratch, folder)
    except OSError as e:
        reason = e.strerror or str(e)
        raise ExportError(f"can't write {folder}: {reason}. Nothing was left behind") from e
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; what was there comes back if that fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    try:
        os.replace(folder, aside / "it")
        os.replace(new, folder)
    finally:
        if not folder.exists() and (aside / "it").exists():
            os.replace(aside / "it", folder)
        if folder.exists():  # else the old one lies in `aside`, and must stay there
            shutil.rmtree(aside, ignore_errors=True)


def has_own_bits(precision: str) -> bool:
    """Whether weights of this precision are codes: a reference for them has to have the same ones."""
    return precision not in ("fp32", "fp16", "bf16")


def check_place(folder: Path, force: bool, keep: Iterable[Path]) -> None:
    """Refuse to write where that would lose something; see `writing`.

    Raises:
        ExportError: what would be lost.
    """
    real = folder.resolve()
    for what, kept in [("the current folder", Path.cwd()), *(("the model itself", file) for file in keep)]:
        # both as named and as resolved: a checkpoint's files may be links out of their folder
        for path in (kept.absolute(), kept.resolve()):
            if path == real or real in path.parents:
                raise ExportError(f"writing {folder} would replace {what} ({kept}); choose another folder")
    if not folder.exists() or force:
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file; choose another place, or --force to replace it")
    if not (folder / MANIFEST).exists():
        if any(folder.iterdir()):
            raise ExportError(
                f"{folder} exists and is no edgeformer artefact; choose another folder, or --force to replace it"
            )
        return
    try:
        manifest = read_manifest(folder)
    except ArtefactError as e:
        raise ExportError(f"{e}; choose another folder, or --force to replace this one") from e
    ours = {MANIFEST, *(name.split("/")[0] for name in manifest["files"]), *manifest["linked"]}
    if others := sorted(p.name for p in folder.iterdir() if p.name not in ours):
        raise ExportError(
            f"{folder} is an artefact that also holds {', '.join(others[:5])}, which replacing it would delete;"
            " choose another folder, or --force to replace it"
        )


def keep_file(file: Path, place: Path) -> None:
    """A file of the folder that is being replaced, in the new one: by a hard link, or copied where the file system has none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def sizes(folder: Path) -> dict[str, int]:
    """Path below the folder -> bytes, of every file in it."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): f.stat().st_size for f in files}


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest in one step."""
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"schema": SCHEMA, **manifest}, indent=1) + "\n")
    os.replace(partial, folder / MANIFEST)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of an artefact.

    Raises:
        ArtefactError: no artefact of ours (the message says what it looks like), or of a newer edgeformer.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        if not folder.exists():
            raise ArtefactError(f"{folder} does not exist")
        onnx = folder if folder.suffix == ".onnx" else next(folder.glob("*.onnx"), None) if folder.is_dir() else None
        what = f"{onnx} was not written by edgeformer" if onnx else f"{folder} is no edgeformer artefact"
        raise ArtefactError(
            f"{what}: there is no {MANIFEST} beside it, so nothing says which model it is and what it must answer."
            " Export the original checkpoint with `edgeformer export MODEL -o DIR`"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (ValueError, OSError) as e:
        raise ArtefactError(f"{folder / MANIFEST} can't be read: {e}") from e
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise ArtefactError(f"{folder / MANIFEST} is no manifest: it names no schema")
    if manifest["schema"] > SCHEMA:
        raise ArtefactError(
            f"{folder} was written by a newer edgeformer (schema {manifest['schema']}, this one reads {SCHEMA})"
        )
    wrong = [k for k, kind in _REQUIRED.items() if not isinstance(manifest.get(k), kind)]
    if wrong:
        raise ArtefactError(
            f"{folder / MANIFEST} is damaged: {', '.join(wrong)} missing or of the wrong type; export again"
        )
    return manifest


def read_spec(folder: str | os.PathLike) -> Model:
    """The spec an artefact was made from: in spec.json, or in the manifest where that name would mislead other readers."""
    try:
        data = read_manifest(folder).get("spec") or json.loads((Path(folder) / "spec.json").read_text())
        spec = from_json(data)
    except (OSError, ValueError) as e:
        raise ArtefactError(f"{folder}: spec.json can't be read: {e}") from e
    if not isinstance(spec, Model):
        raise ArtefactError(f"{folder}: spec.json holds a {spec.kind}, not a model")
    return spec


def fingerprint(file: Path) -> dict[str, Any]:
    """What must not change about a linked file: size, and a digest of its first and 64 spread-out samples.

    A sample digest because a 14 GB checkpoint must link in seconds.
    """
    size = file.stat().st_size
    h = hashlib.sha256()
    with file.open("rb") as f:
        h.update(f.read(1 << 20))
        for i in range(_SAMPLES):
            f.seek(max((size - _SAMPLE) * i // (_SAMPLES - 1), 0))
            h.update(f.read(_SAMPLE))
    return {"bytes": size, "samples_sha256": h.hexdigest()[:32], "mtime_ns": file.stat().st_mtime_ns}


def check_files(folder: str | os.PathLike, manifest: dict[str, Any]) -> None:
    """Check that an artefact's own files are complete and its linked files are the ones it was made from.

    Raises:
        ArtefactError: naming the file and what changed.
    """
    folder = Path(folder)
    for name, size in manifest.get("files", {}).items():
        file = folder / name
        if not file.exists() or file.stat().st_size != size:
            found = f"{file.stat().st_size} bytes" if file.exists() else "missing"
            raise ArtefactError(f"{file} is {found}, the manifest says {size} bytes; export again")
    for name, entry in manifest.get("linked", {}).items():
        file = folder / name if entry["hard_link"] else Path(entry["path"])
        if not file.exists():
            raise ArtefactError(f"the linked file {file} is gone; export again, or with --weights copy")
        now = fingerprint(file)
        if now["bytes"] != entry["bytes"] or now["samples_sha256"] != entry["samples_sha256"]:
            raise ArtefactError(
                f"the linked file {file} changed since the export (size {entry['bytes']} -> {now['bytes']}); its weights"
                " are no longer the ones that were exported. Export again, or with --weights copy"
            )
        if now["mtime_ns"] != entry["mtime_ns"]:
            raise ArtefactError(
                f"the linked file {file} was written to since the export (its modification time moved); export again,"
                " or with --weights copy to be independent of it"
            )
