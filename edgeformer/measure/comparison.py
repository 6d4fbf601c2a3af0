"""Comparison of one model across runtimes: which artefacts it needs (built once and cached), and which runtimes run which."""

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
from edgeformer.inference.lookup import compared, get, names, require
from edgeformer.inference.runtime import Options
from edgeformer.measure.bench import check_lengths, measure
from edgeformer.measure.harness import Run
from edgeformer.measure.plans import artefact_plans, checkpoint_plans, too_slow
from edgeformer.measure.row import Plan
from edgeformer.measure.settings import Settings
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest

NATIVE = ("4bit", "8bit")
"""MLX's own precisions, which no other export format supports."""
Progress = Callable[[int, int], None] | None


@dataclass
class Build:
    """An artefact to export, and the runtimes that will run it."""

    to: str
    precision: str
    target: str | None = None
    runtimes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Display name, e.g. `onnx-portable q4`."""
        return f"{self.to}{'-' + self.target if self.target not in (None, 'cpu') else ''} {self.precision}"

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the export."""
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
    accuracy_level: int | None = None,
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
        runtimes: names, `name:variant` or a server's URL; default: every installed one that fits.
        precisions: precisions of the exports; fp32 rows also run the checkpoint itself.
        output: write the artefacts to this folder instead of the cache.
        weights, accuracy_level: of ONNX exports, as in `edgeformer.export`.
        settings, load_options, resume, report, note, measured: as in `edgeformer.bench`.
        progress: maps an export's name to a context manager that yields a callback (done, total bytes).

    Raises:
        InputError: no runtime can run the model in these precisions.
        ExportError: an export needed by an explicitly named runtime failed.
    """
    loaded = load(model, **(load_options or {}))
    for line in loaded.notes:
        note(line)
    loaded.require_weights()
    settings = settings or Settings()
    check_lengths(settings, loaded.spec, loaded.spec.context, model)
    wanted, native, remarks = builds(loaded.spec, runtimes, precisions)
    with contextlib.ExitStack() as uses:  # holds locks, so that cached artefacts aren't deleted while they are measured
        options = {"weights": weights} | ({} if accuracy_level is None else {"accuracy_level": accuracy_level})
        plans, notes = _made(loaded, wanted, runtimes is not None, output, options, note, progress, uses)
        remarks += notes
        if native:
            found, notes = checkpoint_plans(model, loaded, native, load_options=load_options)
            plans += found
            remarks += map(str, notes)
        for remark in remarks:
            note(remark)
        if not plans:
            raise InputError(
                f"no installed runtime runs {model} in {', '.join(precisions)}; see `edgeformer targets {model}`"
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
    options: dict[str, Any],
    note: Callable[[str], None],
    progress: Callable[[str], Any] | None,
    uses: contextlib.ExitStack,
) -> tuple[list[Plan], list[str]]:
    """Plans for the artefacts, each exported or found in the cache, and notes; `asked`: the user named the runtimes; `options`:
    of ONNX exports."""
    plans: list[Plan] = []
    remarks: list[str] = []
    for build in wanted:
        build_options = options if build.to == "onnx" else {}
        with progress(f"exporting {build.name}") if progress else contextlib.nullcontext() as bar:
            try:
                folder = make(loaded, build, build_options, output, bar, note, uses)
            except ExportError as e:
                if asked:
                    raise
                # expected: llama.cpp, for one, supports only some architectures
                remarks.append(f"no rows for {build.name}: {e}")
                continue
        found, notes = artefact_plans(str(folder), bundle.read_manifest(folder), loaded.spec, build.runtimes)
        plans += found
        remarks += map(str, notes)
    return plans, remarks


def builds(
    spec: Model, runtimes: list[str] | None, precisions: tuple[str, ...]
) -> tuple[list[Build], list[str], list[str]]:
    """The artefacts a comparison needs, the runtimes that run the checkpoint itself, and notes on those left out.

    Raises:
        InputError: a precision is supported by none of the requested runtimes, or a requested runtime supports none.
    """
    made: dict[tuple[str, str, str | None], Build] = {}
    native, notes = [], []
    for name in runtimes if runtimes is not None else compared(spec):
        runtime, variant = get(name) if runtimes is None else require(name)
        if runtimes is None:
            if not runtime.ranked or not runtime.timed or runtime.served:
                continue
            reason = runtime.unavailable() or runtime.refuses(spec, Options(variant=variant))
            if reason is None and too_slow(runtime, spec):
                reason = f"too slow for a model of this size; --runtimes {name} includes it anyway"
            if reason is not None:
                notes.append(f"no rows for {name}: {reason}")
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
            notes.append(f"no rows for {name} in {', '.join(idle)}")
    for precision in precisions:
        if not any(b.precision == precision for b in made.values()) and not (precision == "fp32" and native):
            raise InputError(
                f"none of the requested runtimes runs a {precision} export of this model; leave this precision out"
            )
    return list(made.values()), native, notes


def _has_folder(kind: str, spec: Model) -> bool:
    """Whether any runtime native to a format runs this spec: mlx-lm, for one, runs no encoders."""
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
    """Return a build's folder, exporting it if needed. The cache key covers the inputs and the export options; `uses` then
    holds a shared lock that keeps the cached folder from being deleted."""
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
        with lock_of(folder):  # waits for processes that are measuring it
            if not (folder.exists() and _intact(folder, lambda _: None)):
                _export(loaded, folder, build, options, progress, note)
                remember_content(folder)


def _intact(folder: Path, note: Callable[[str], None]) -> bool:
    """Whether a cached artefact is byte-identical to what was exported, and the files it links to are unchanged."""
    try:
        bundle.check_files(folder, bundle.read_manifest(folder))
    except ArtefactError:
        return False
    if (changed := changed_file(folder)) is not None:
        note(f"{folder / changed} in the cache was modified after export; exporting the artefact again")
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
    """Sixteen hex digits over the weights, the spec, the export options, and the edgeformer version and sources."""
    beside = hashlib.sha256()  # tokenizer files and others that are copied along
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
    """A digest of our own sources and of the versions of packages that write files: a code change invalidates the cache."""
    h = hashlib.sha256()
    for part in ("edgeformer", "edgeformer.exporters", "edgeformer.models"):
        package = Path(importlib.import_module(part).__file__ or "").parent
        for file in sorted(package.rglob("*.py")):
            if not {"cli", "measure", "report"} & set(file.relative_to(package).parts):
                h.update(file.read_bytes())
    for name in ("onnx", "onnx-ir", "numpy", "gguf", "mlx", "coreai-core"):
        with contextlib.suppress(PackageNotFoundError):
            h.update(f"{name} {version(name)}".encode())
    return h.hexdigest()[:16]


__all__ = ["Build", "builds", "cache_key", "compare", "make"]
