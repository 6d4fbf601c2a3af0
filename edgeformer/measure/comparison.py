"""A comparison from one model: which artefacts it takes, made once and kept in the cache, and which runtimes run which."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import edgeformer
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.errors import ArtefactError, ExportError, InputError
from edgeformer.exporters.dispatch import export_as
from edgeformer.files.cache import cache_folder, changed_file, lock_of, remember_content, touch
from edgeformer.inference.lookup import get, names, require
from edgeformer.inference.runtime import Options
from edgeformer.measure.bench import check_lengths, measure
from edgeformer.measure.harness import Run
from edgeformer.measure.plans import artefact_plans, checkpoint_plans, too_slow
from edgeformer.measure.row import Plan
from edgeformer.measure.settings import Settings
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest

NATIVE = ("4bit", "8bit")
"""MLX's own formats, which nothing else is exported to."""
Progress = Callable[[int, int], None] | None


@dataclass
class Build:
    """An artefact to make, and the runtimes that are to run it."""

    to: str
    precision: str
    target: str | None = None
    runtimes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people: `onnx-portable q4`."""
        return f"{self.to}{'-' + self.target if self.target not in (None, 'cpu') else ''} {self.precision}"

    def options(self) -> dict[str, Any]:
        """Of the export."""
        made: dict[str, Any] = {"precision": self.precision}
        if self.target is not None:
            made["target"] = self.target
        return made | ({"no_tokenizer": True} if self.to == "gguf" else {})


def compare(
    model: str,
    *,
    runtimes: list[str] | None = None,
    precisions: tuple[str, ...] = ("fp32",),
    output: Path | None = None,
    weights: str = "copy",
    settings: Settings | None = None,
    load_options: dict[str, Any] | None = None,
    resume: bool | None = False,
    report: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    measured: Callable[[Model, Run], bool | None] = lambda *_: None,
    progress: Callable[[str], Any] | None = None,
) -> tuple[Model, Run]:
    """Export MODEL in every precision for every runtime, check each against the original, and measure all of them.

    Args:
        model: a MODEL with weights.
        runtimes: names, `name:variant` or a server's URL; every installed one that fits by default.
        precisions: of the exports; fp32 rows also run the checkpoint itself.
        output: keep the artefacts in this folder, not in the cache.
        weights: copy or link, of ONNX exports.
        settings, load_options, resume, report, note, measured: as in `edgeformer.bench`.
        progress: makes a context manager for an export's name that gives a callback (done, total bytes).

    Raises:
        InputError: nothing can run it this way.
        ExportError: an export that a runtime was asked for fails.
    """
    loaded = load(model, **(load_options or {}))
    loaded.require_weights()
    settings = settings or Settings()
    check_lengths(settings, loaded.spec, loaded.spec.context, model)
    wanted, native, remarks = builds(loaded.spec, runtimes, precisions)
    with contextlib.ExitStack() as uses:  # what is measured is not deleted meanwhile
        plans, notes = _made(loaded, wanted, runtimes is not None, output, weights, note, progress, uses)
        remarks += notes
        if native:
            found, notes = checkpoint_plans(model, loaded, native, load_options=load_options)
            plans += found
            remarks += map(str, notes)
        for remark in remarks:
            note(remark)
        if not plans:
            raise InputError(
                f"no runtime here runs {model} in {', '.join(precisions)}; see `edgeformer targets {model}`"
            )
        order = {precision: n for n, precision in enumerate(precisions)}
        plans.sort(key=lambda p: order.get(p.precision, 0))
        run = measure(
            plans,
            loaded.spec,
            settings,
            reference=(model, load_options or {}),
            resume=resume,
            report=report,
            note=note,
            measured=measured,
        )
    return loaded.spec, run


def _made(
    loaded: LoadedModel,
    wanted: list[Build],
    asked: bool,
    output: Path | None,
    weights: str,
    note: Callable[[str], None],
    progress: Callable[[str], Any] | None,
    uses: contextlib.ExitStack,
) -> tuple[list[Plan], list[str]]:
    """The rows of the artefacts, each made or found, and remarks; `asked`: the user named the runtimes."""
    plans: list[Plan] = []
    remarks: list[str] = []
    for build in wanted:
        build_options = {"weights": weights} if build.to == "onnx" else {}
        with progress(f"exporting {build.name}") if progress else contextlib.nullcontext() as bar:
            try:
                folder = make(loaded, build, build_options, output, bar, note, uses)
            except ExportError as e:
                if asked:
                    raise
                # llama.cpp has some architectures, and this is none of them
                remarks.append(f"no rows of {build.name}: {e}")
                continue
        found, notes = artefact_plans(str(folder), bundle.read_manifest(folder), loaded.spec, build.runtimes)
        plans += found
        remarks += map(str, notes)
    return plans, remarks


def builds(
    spec: Model, runtimes: list[str] | None, precisions: tuple[str, ...]
) -> tuple[list[Build], list[str], list[str]]:
    """The artefacts that a comparison needs, the runtimes that run the checkpoint itself, and notes on those left out.

    Raises:
        InputError: a precision that none of the runtimes asked for runs.
    """
    made: dict[tuple[str, str, str | None], Build] = {}
    native, notes = [], []
    for name in runtimes if runtimes is not None else names():
        runtime, variant = get(name) if runtimes is None else require(name)
        if runtimes is None:
            if not runtime.ranked or runtime.served:
                continue
            reason = runtime.unavailable() or runtime.refuses(spec, Options(variant=variant))
            if reason is None and too_slow(runtime, spec):
                reason = f"it is slow here for a model of this size; --runtimes {name} asks for it"
            if reason is not None:
                notes.append(f"no rows of {name}: {reason}")
                continue
        idle = []
        for precision in precisions:
            kinds = (runtime.opens, *runtime.also_opens)
            if precision == "fp32" and "checkpoint" in kinds:
                native.append(name)
                continue
            kind = next((k for k in kinds if k != "checkpoint" and (k == "mlx" or precision not in NATIVE)), None)
            if kind is None or not _has_folder(kind, spec):
                idle.append(precision)
                continue
            target = runtime.target(variant) if kind == "onnx" else None
            build = made.setdefault((kind, precision, target), Build(kind, precision, target))
            build.runtimes.append(name)
        if runtimes is not None and len(idle) == len(precisions):
            raise InputError(f"{name} runs no {' or '.join(idle)} export of this model; add fp32, or leave {name} out")
        if runtimes is not None and idle:
            notes.append(f"no rows of {name} in {', '.join(idle)}")
    for precision in precisions:
        if not any(b.precision == precision for b in made.values()) and not (precision == "fp32" and native):
            raise InputError(
                f"none of the runtimes asked for runs a {precision} export of this model; leave the precision out"
            )
    return list(made.values()), native, notes


def _has_folder(kind: str, spec: Model) -> bool:
    """Whether any runtime made for a format runs this task: an encoder has no folder for mlx-lm."""
    made_for = [runtime for runtime, _ in map(get, names()) if runtime.opens == kind]
    return any(runtime.refuses(spec, Options()) is None for runtime in made_for)


def make(
    loaded: LoadedModel,
    build: Build,
    options: dict[str, Any],
    output: Path | None,
    progress: Progress,
    note: Callable[[str], None],
    uses: contextlib.ExitStack,
) -> Path:
    """The folder of a build: in the cache under a key of what it was made from and how, made if it isn't there. `uses` then holds
    a lock that keeps it from being deleted."""
    options = build.options() | options
    name = Path(loaded.name).resolve().name
    if output is not None:
        folder = output / f"{name}-{build.name.replace(' ', '-')}"
        _export(loaded, folder, build, options, progress, note)
        return folder
    key = cache_key(loaded, build.to, options)
    folder = cache_folder("artefacts") / f"{name}-{build.name.replace(' ', '-')}-{key}"
    while True:
        use = lock_of(folder, shared=True)
        if folder.exists() and _intact(folder, note):
            touch(folder)
            uses.push(use)
            return folder
        use.release()
        with lock_of(folder):  # waits for those that measure it
            if not (folder.exists() and _intact(folder, lambda _: None)):
                _export(loaded, folder, build, options, progress, note)
                remember_content(folder)


def _intact(folder: Path, note: Callable[[str], None]) -> bool:
    """Whether every byte of a cached artefact is what was made, and what it links to is unchanged."""
    try:
        bundle.check_files(folder, bundle.read_manifest(folder))
    except ArtefactError:
        return False
    if (changed := changed_file(folder)) is not None:
        note(f"{folder / changed} in the cache is not what was made; the artefact is made again")
    return changed is None


def _export(
    loaded: LoadedModel,
    folder: Path,
    build: Build,
    options: dict[str, Any],
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    made = export_as(loaded, folder, build.to, progress=progress, **options)
    for line in made.notes[len(loaded.notes) :]:
        note(line)


def cache_key(loaded: LoadedModel, to: str, options: dict[str, Any]) -> str:
    """Sixteen hex digits over the weights, the spec, the export, and the edgeformer that makes it."""
    beside = hashlib.sha256()  # the tokenizer and its like, which are copied along
    for file in sorted(loaded.folder.glob("*.*")) if loaded.folder is not None and loaded.folder.is_dir() else []:
        if file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file():
            beside.update(file.name.encode() + file.read_bytes())
    told = {
        "weights": loaded.require_weights().content_digest(),
        "spec": digest(loaded.spec),
        "to": to,
        "options": options,
        "edgeformer": edgeformer.__version__,
        "makers": _makers_digest(),
        "beside": beside.hexdigest(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _makers_digest() -> str:
    """Of our own sources and of the packages that write files: an artefact of last week's code is not this week's."""
    h = hashlib.sha256()
    for part in ("edgeformer", "edgeformer.exporters", "edgeformer.models"):
        package = Path(importlib.import_module(part).__file__ or "").parent
        for file in sorted(package.rglob("*.py")):
            if not {"cli", "measure", "report"} & set(file.relative_to(package).parts):
                h.update(file.read_bytes())
    for name in ("onnx", "onnx-ir", "numpy", "gguf", "mlx"):
        with contextlib.suppress(PackageNotFoundError):
            h.update(f"{name} {version(name)}".encode())
    return h.hexdigest()[:16]


__all__ = ["Build", "builds", "cache_key", "compare", "make"]
