"""An artefact: a folder with a model for some runtime and `edgeformer.json`, the manifest that describes it.

The manifest holds digests of the spec and the weights, how ops were lowered, the files and their sizes, the linked files with
their fingerprints, and the verdict of `edgeformer verify`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from edgeformer.checkpoint.links import check_linked
from edgeformer.checkpoint.manifest import MANIFEST, Manifest, read
from edgeformer.errors import ArtefactError, ExportError
from edgeformer.files.atomic import repair, replace_file, replace_folder
from edgeformer.files.json_file import read_json_file
from edgeformer.files.paths import check_links, inside
from edgeformer.files.scratch import partial_folder
from edgeformer.files.trust import check_code
from edgeformer.files.typed import mismatch
from edgeformer.spec import Model
from edgeformer.spec.serialization import from_json
from edgeformer.weights.onnx_file import check_locations
from edgeformer.weights.precision import FLOAT_TYPES


@contextlib.contextmanager
def writing(folder: Path, *, force: bool = False, keep: Iterable[Path] = ()) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block succeeds, and is deleted when it fails.

    An existing artefact is replaced; a folder with anything else in it only with `force`. Never replaced: a
    folder that holds one of the `keep` files (the model being exported), and the current folder.

    Raises:
        ExportError: `folder` is taken, or can't be written to.
    """
    folder = folder.absolute()
    try:
        repair(folder)
        check_place(folder, force, keep)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(folder) as scratch:
            yield scratch
            os.chmod(scratch, 0o755)
            if (old := replace_folder(scratch, folder)) is not None:
                shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        reason, at = e.strerror or str(e), e.filename
        if isinstance(at, str) and not Path(at).is_relative_to(folder.parent):
            raise ExportError(f"can't read {at}: {reason}; {folder} is unchanged") from e
        raise ExportError(f"can't write {folder}: {reason}. Nothing was left behind") from e


def has_own_bits(precision: str) -> bool:
    """Whether weights of this precision are quantized codes, so that a reference must have the same codes."""
    return precision not in FLOAT_TYPES


def check_place(folder: Path, force: bool, keep: Iterable[Path]) -> None:
    """Refuse to write where that would lose data; see `writing`.

    Raises:
        ExportError: data would be lost; the message says which.
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
        raise ExportError(f"{folder} is a file; choose another path, or pass --force to replace it")
    if not (folder / MANIFEST).exists():
        if any(folder.iterdir()):
            raise ExportError(
                f"{folder} exists and is not an edgeformer artefact; choose another folder, or pass --force to replace it"
            )
        return
    try:
        manifest = read_manifest(folder)
    except ArtefactError as e:
        raise ExportError(f"{e}; choose another folder, or pass --force to replace this one") from e
    ours = {MANIFEST, *(name.split("/")[0] for name in manifest["files"]), *manifest["linked"]}
    if others := sorted(p.name for p in folder.iterdir() if p.name not in ours):
        raise ExportError(
            f"{folder} is an artefact that also holds {', '.join(others[:5])}, which replacing it would delete;"
            " choose another folder, or pass --force to replace it"
        )


def keep_file(file: Path, place: Path) -> None:
    """Keep a file of the replaced folder in the new one, by a hard link, or by a copy where the file system has none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def sizes(folder: Path) -> dict[str, int]:
    """Path below the folder -> bytes, of every file in it."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): f.stat().st_size for f in files}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step."""
    if (wrong := mismatch(manifest, Manifest)) is not None:
        raise TypeError(f"this manifest could not be read back: {wrong}")
    replace_file(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of an artefact.

    Raises:
        ArtefactError: not an edgeformer artefact (the message says what it looks like), or written by a newer edgeformer.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        with contextlib.suppress(OSError):
            repair(folder.absolute())
    if not (folder / MANIFEST).exists():
        if not folder.exists():
            raise ArtefactError(f"{folder} does not exist")
        onnx = folder if folder.suffix == ".onnx" else next(folder.glob("*.onnx"), None) if folder.is_dir() else None
        what = f"{onnx} was not written by edgeformer" if onnx else f"{folder} is not an edgeformer artefact"
        raise ArtefactError(
            f"{what}: there is no {MANIFEST} beside it, so its model and its expected outputs are unknown."
            " Export the original checkpoint with `edgeformer export MODEL -o DIR`"
        )
    return read(folder / MANIFEST, ArtefactError)


def read_spec(folder: str | os.PathLike) -> Model:
    """The spec an artefact was made from: in spec.json, or in the manifest where that name would mislead other readers."""
    data = read_manifest(folder).get("spec") or read_json_file(Path(folder) / "spec.json", ArtefactError)
    spec = from_json(data)
    if not isinstance(spec, Model):
        raise ArtefactError(f"{folder}: spec.json holds a {spec.kind}, not a model")
    return spec


def model_files(folder: Path, manifest: Manifest) -> list[Path]:
    """The ONNX files of an artefact: the graph, and the encoder's graph if there are two programs.

    Raises:
        ArtefactError: a name leads out of the folder.
    """
    names = [
        manifest.get("model_file", "model.onnx"),
        *([manifest["encoder_file"]] if "encoder_file" in manifest else []),
    ]
    return [inside(folder, name, f"the manifest of {folder}", ArtefactError) for name in names]


def check_files(folder: str | os.PathLike, manifest: Manifest) -> None:
    """Check that an artefact's own files are complete, its linked files are the ones it was made from, and nothing in it leads
    out of its folder.

    Raises:
        ArtefactError: a check failed; the message names the file and what changed.
    """
    folder = Path(folder)
    check_links(folder, ArtefactError)
    for name, size in manifest["files"].items():
        file = inside(folder, name, f"the manifest of {folder}", ArtefactError)
        if not file.is_file() or file.stat().st_size != size:
            found = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            raise ArtefactError(f"{file} is {found}, the manifest says {size} bytes; export again")
    linked = check_linked(folder, manifest["linked"])
    if manifest.get("format") == "onnx":
        for file in model_files(folder, manifest):
            check_locations(file, linked)


def opened(folder: str | os.PathLike, own_code: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of an artefact that a runtime is about to open, after `check_files` and `trust.check_code`.

    own_code: file name -> the text of the code that edgeformer itself writes there.

    Raises:
        ArtefactError: see `read_manifest` and these two.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    check_code(Path(folder), own_code)
    return manifest


def is_artefact(path: Path) -> bool:
    """Whether a path is a folder that `export` wrote or a third party's ONNX file, and not a MODEL."""
    if (path / MANIFEST).exists() or path.suffix == ".onnx":
        return True
    return path.is_dir() and not (path / "config.json").exists() and next(path.glob("*.onnx"), None) is not None
