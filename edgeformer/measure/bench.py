"""Benchmark entry point: plan the rows for artefacts and checkpoints of one architecture, then call `harness.run`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import edgeformer
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.links import linked_files
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.errors import InputError
from edgeformer.files.digests import file_digest, folder_digests
from edgeformer.inference.lookup import get
from edgeformer.measure.harness import Run, run
from edgeformer.measure.journal import Journal, key_of
from edgeformer.measure.plans import NoRow, artefact_plans, checkpoint_plans, label
from edgeformer.measure.row import Plan
from edgeformer.measure.settings import Settings
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest


def bench(
    sources: str | Sequence[str],
    *,
    runtimes: Sequence[str] | None = None,
    against: str | None = None,
    settings: Settings | None = None,
    load_options: dict[str, Any] | None = None,
    resume: bool | None = None,
    report: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    measured: Callable[[Model, Run], bool | None] = lambda *_: None,
) -> tuple[Model, Run]:
    """Measure artefacts and checkpoints of one architecture, one process per row, and check outputs in the same run.

    Args:
        sources: artefact folders and MODELs.
        runtimes: names (`onnxruntime`, `torch:compile`, `http://localhost:8080/v1`); default: every installed one that fits.
        against: the MODEL that outputs are checked against; default: a checkpoint among the sources.
        settings: lengths, rounds, threads; see `Settings`.
        load_options: keyword arguments of `load` for MODELs.
        resume: keep a journal in the cache folder, and continue an unfinished run (True) or start a new one (False);
            None keeps no journal.
        report: called with progress messages.
        note: called with messages for the user.
        measured: called with the spec and the run after every shape; returning False keeps the journal.

    Returns:
        The spec, and the run: a row per (runtime, source, shape).

    Raises:
        InputError: the sources have different architectures, nothing is left to run, or the lengths exceed the context.
    """
    chosen = None if runtimes is None else list(runtimes)
    given = [sources] if isinstance(sources, str) else list(dict.fromkeys(sources))
    settings = settings or Settings()
    plans: list[Plan] = []
    specs: dict[str, Model] = {}
    remarks: list[NoRow] = []
    weightless: list[LoadedModel] = []
    for source in given:
        if bundle.is_artefact(Path(source)):
            manifest, spec = bundle.read_manifest(source), bundle.read_spec(source)
            found, notes = artefact_plans(source, manifest, spec, chosen)
            context = manifest["context"]
        else:
            loaded = load(source, **(load_options or {}))
            spec, against, context = loaded.spec, against or source, loaded.spec.context
            found, notes = checkpoint_plans(source, loaded, chosen, load_options=load_options)
            if loaded.weights is None and any(plan.ranked for plan in found):
                weightless.append(loaded)
        check_lengths(settings, spec, context, source)
        remarks += notes
        plans += found
        specs[digest(spec)] = spec
    if len(specs) != 1:
        raise InputError(f"one run compares one architecture; these sources have {len(specs)}: {', '.join(given)}")
    for loaded in weightless:
        loaded.require_weights()  # raises with the reason
    _check_chosen(chosen, plans, remarks)
    for line in remarks:
        if chosen is None or not plans:
            note(str(line))
    spec = next(iter(specs.values()))
    native = {(p.runtime, p.precision) for p in plans if p.opens == "checkpoint"}
    # an MLX folder is also a checkpoint: don't list the same row twice
    plans = [p for p in plans if p.opens == get(p.runtime)[0].opens or (p.runtime, p.precision) not in native]
    reference = None if against is None else (against, load_options or {})
    return spec, measure(
        plans, spec, settings, reference=reference, resume=resume, report=report, note=note, measured=measured
    )


def measure(
    plans: list[Plan],
    spec: Model,
    settings: Settings,
    *,
    reference: tuple[str, dict[str, Any]] | None,
    resume: bool | None = None,
    report: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    measured: Callable[[Model, Run], bool | None] = lambda *_: None,
) -> Run:
    """Run the plans of one spec; arguments as in `bench`. reference: (MODEL, options of `load`)."""
    journal, plans = None, label(plans)
    if resume is not None:
        models = {
            source: _identity(source) for source in {p.source for p in plans} | ({reference[0]} if reference else set())
        }
        versions = {p.runtime: get(p.runtime)[0].versions() for p in plans}
        identity = {"models": models, "versions": versions, "spec": digest(spec), "edgeformer": edgeformer.__version__}
        journal, remark = Journal.begin(key_of(plans, settings, identity), resume=resume)
        if remark is not None:
            note(remark)
    return run(
        plans,
        spec,
        settings,
        reference=reference,
        report=report,
        journal=journal,
        measured=lambda so_far: measured(spec, so_far),
    )


def _identity(source: str) -> str:
    """A digest over every byte of a source."""
    if bundle.is_artefact(Path(source)):
        manifest = bundle.read_manifest(source)
        manifest["verdict"] = None
        linked = linked_files(Path(source), manifest["linked"]).values()
        content = [folder_digests(Path(source), (bundle.MANIFEST,)), [file_digest(file) for file in linked]]
        return hashlib.sha256(json.dumps([manifest, content], sort_keys=True).encode()).hexdigest()
    loaded = load(source, allow_unread_config=True)
    return loaded.weights.content_digest() if loaded.weights is not None else digest(loaded.spec)


def check_lengths(settings: Settings, spec: Model, context: int, what: str) -> None:
    """Reject lengths that exceed the context, before anything is exported or started.

    Raises:
        InputError: depth, prompt and generated tokens together exceed `context`.
    """
    needed = settings.longest(spec)
    if needed > context:
        raise InputError(
            f"{needed} tokens (depth, prompt and generated) exceed the {context} positions of {what}; reduce --prompt,"
            " --gen or --depth"
        )


def _check_chosen(chosen: list[str] | None, plans: list[Plan], remarks: list[NoRow]) -> None:
    idle = [name for name in chosen or [] if name not in {p.runtime for p in plans}]
    if idle or not plans:
        reasons = [str(r) for r in remarks if chosen is None or r.runtime in idle]
        raise InputError("; ".join(dict.fromkeys(reasons)) or "no runtime is installed; see `edgeformer runtimes`")
