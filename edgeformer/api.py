"""The Python API: what the commands do, as functions. `edgeformer.load`, `save`, `build_torch`, `export`, `verify`, `bench`.

MODEL arguments take what `load` takes, or what it returned.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeformer
from edgeformer import bundle, parity
from edgeformer.checkpoint import LoadedModel, load
from edgeformer.digests import file_digest, folder_digests
from edgeformer.errors import CheckpointError, InputError
from edgeformer.export import FORMATS
from edgeformer.export.artefact import Exported
from edgeformer.links import linked_files
from edgeformer.measure.harness import Run, run
from edgeformer.measure.journal import Journal, key_of
from edgeformer.measure.plans import artefact_plans, checkpoint_plans, label
from edgeformer.measure.row import Plan
from edgeformer.measure.settings import Settings
from edgeformer.rounding import stored_format
from edgeformer.runtimes._lookup import get
from edgeformer.saving import save
from edgeformer.serialization import digest
from edgeformer.spec import Model

if TYPE_CHECKING:
    from edgeformer.backends.mlx import MlxModel
    from edgeformer.backends.torch import TorchModel
    from edgeformer.quantize.run import QuantizedCheckpoint

ModelLike = str | os.PathLike | LoadedModel


def _loaded(model: ModelLike) -> LoadedModel:
    return model if isinstance(model, LoadedModel) else load(model)


def build_torch(
    model: ModelLike | Model, *, precision: str = "fp32", device: str = "cpu", dequantize: bool = False
) -> TorchModel:
    """The model as a `torch.nn.Module`, to train, compile or shard.

    Args:
        model: a MODEL with weights (they are loaded, float32), or a bare spec (freshly initialised by its `init`).
        precision: fp32, fp16 or bf16: what loaded weights are rounded to first.
        device: where the parameters live.
        dequantize: build a quantized checkpoint's numbers, scale · (code − zero), instead of refusing it.

    Raises:
        CheckpointError: the weights are quantized.
        RuntimeUnavailable: torch is not installed.
    """
    from edgeformer.runtimes._lookup import require

    require("torch")
    if isinstance(model, Model):
        from edgeformer.backends.torch_encoder_decoder import torch_model

        return torch_model(model).to(device)
    from edgeformer.runtimes.torch import build_torch as build

    loaded = _loaded(model)
    if loaded.weights is None:
        return build_torch(loaded.spec, device=device)
    if (has := stored_format(loaded.weights)) is not None and not dequantize:
        raise CheckpointError(
            f"{loaded.name} is quantized ({has}): training it would start from rounded weights, and saving it would not keep"
            " its codes. Train the original, or give dequantize=True to build the rounded numbers in float32"
        )
    return build(loaded, precision=precision, device=device)


def export(model: ModelLike, output: str | os.PathLike, *, to: str = "onnx", **options: Any) -> Exported:
    """Write MODEL as an artefact. `options` are those of `edgeformer.export.onnx.export_onnx`,
    `edgeformer.export.mlx.export_mlx` and so on.

    Raises:
        ExportError: it can't be written as asked; nothing is left behind.
        InputError: there is no such format, or it has no such option.
    """
    if to not in FORMATS:
        raise InputError(f"there is no export to {to!r}; formats are: {', '.join(FORMATS)}")
    write = getattr(importlib.import_module(f"edgeformer.export.{to}"), f"export_{to}")
    known = inspect.signature(write).parameters
    set_by_users = [name for name in list(known)[2:] if name != "progress"]
    if unknown := sorted(options.keys() - known.keys()):
        raise InputError(f"the export to {to} has no option {', '.join(unknown)}; it has {', '.join(set_by_users)}")
    return write(_loaded(model), output, **options)


def quantize(model: ModelLike, output: str | os.PathLike, **options: Any) -> QuantizedCheckpoint:
    """Write MODEL as a quantized checkpoint. `options` are those of `edgeformer.quantize.run.quantize`.

    Raises:
        InputError, CheckpointError: see there.
    """
    from edgeformer.quantize.run import quantize as run_quantize

    return run_quantize(_loaded(model), output, **options)


def build_mlx(model: ModelLike | Model, *, precision: str = "fp32") -> MlxModel:
    """The model as an `mlx.nn.Module`, to train, quantize or run.

    Args:
        model: a MODEL with weights (they are loaded), or a bare spec (freshly initialised by its `init`).
        precision: fp32, fp16 or bf16, of weights and activations.

    Raises:
        RuntimeUnavailable: MLX is not installed.
    """
    from edgeformer.runtimes._lookup import require

    require("mlx")
    if isinstance(model, Model):
        from edgeformer.backends.mlx.encoder_decoder import mlx_model

        return mlx_model(model)
    from edgeformer.runtimes.mlx import build_mlx as build

    loaded = _loaded(model)
    return build_mlx(loaded.spec) if loaded.weights is None else build(loaded, precision=precision)


def verify(artefact: str | os.PathLike, against: ModelLike, **options: Any) -> parity.Verdict:
    """Check an artefact against its original. `options` are those of `edgeformer.parity.verify`."""
    return parity.verify(Path(artefact), _loaded(against), **options)


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
    """Measure artefacts and checkpoints of one architecture, one process per row, outputs checked in the same run.

    Args:
        sources: artefact folders and MODELs.
        runtimes: names (`onnxruntime`, `torch:compile`, `http://localhost:8080/v1`); every installed one that fits by default.
        against: the MODEL that outputs are checked against; a checkpoint among the sources by default.
        settings: lengths, rounds, threads; see `Settings`.
        load_options: keyword arguments of `load` for MODELs.
        resume: keep a journal in the cache folder, and go on with the one of an unfinished run (True) or start anew (False);
            None keeps none.
        report: told what is happening.
        note: told what the user should know.
        measured: given the spec and the run after every shape; False keeps the journal.

    Returns:
        The spec, and the run: a row per (runtime, source, shape).

    Raises:
        InputError: the sources are of different architectures, nothing is left to run, or it doesn't fit the context.
    """
    chosen = None if runtimes is None else list(runtimes)
    given = [sources] if isinstance(sources, str) else list(dict.fromkeys(sources))
    settings = settings or Settings()
    plans: list[Plan] = []
    specs: dict[str, Model] = {}
    remarks: list[str] = []
    weightless: list[LoadedModel] = []
    for source in given:
        if is_artefact(Path(source)):
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
        raise InputError(f"one run compares one architecture; these are {len(specs)}: {', '.join(given)}")
    for loaded in weightless:
        loaded.require_weights()  # says what is wrong
    _check_chosen(chosen, plans, remarks)
    for line in remarks:
        if chosen is None or not plans:
            note(line)
    spec = next(iter(specs.values()))
    native = {(p.runtime, p.precision) for p in plans if p.opens == "checkpoint"}
    # an MLX folder is a checkpoint too: not the same row twice
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
    """Run plans of one spec; arguments as those of `bench`. reference: (MODEL, options of `load`)."""
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
    """A digest over every byte of what a source holds."""
    if is_artefact(Path(source)):
        manifest = {k: v for k, v in bundle.read_manifest(source).items() if k != "verdict"}
        linked = linked_files(Path(source), manifest["linked"]).values()
        content = [folder_digests(Path(source), (bundle.MANIFEST,)), [file_digest(file) for file in linked]]
        return hashlib.sha256(json.dumps([manifest, content], sort_keys=True).encode()).hexdigest()
    loaded = load(source, allow_unread_config=True)
    return loaded.weights.content_digest() if loaded.weights is not None else digest(loaded.spec)


def check_lengths(settings: Settings, spec: Model, context: int, what: str) -> None:
    """Refuse prompts that don't fit, before anything is exported or started.

    Raises:
        InputError: prompt and generated tokens exceed the positions there are.
    """
    needed = settings.longest(spec)
    if needed > context:
        raise InputError(
            f"{needed} tokens (depth, prompt and generated) exceed the {context} positions of {what}; give a smaller --prompt,"
            " --gen or --depth"
        )


def _check_chosen(chosen: list[str] | None, plans: list[Plan], remarks: list[str]) -> None:
    idle = [name for name in chosen or [] if name not in {p.runtime for p in plans}]
    if idle or not plans:
        reasons = [r for r in remarks if chosen is None or any(r.startswith(f"no row for {n}:") for n in idle)]
        raise InputError("; ".join(dict.fromkeys(reasons)) or "no runtime is installed; see `edgeformer runtimes`")


def is_artefact(path: Path) -> bool:
    """Whether this is a folder that `export` wrote, or an ONNX file of somebody else's, and no MODEL."""
    if (path / bundle.MANIFEST).exists() or path.suffix == ".onnx":
        return True
    return path.is_dir() and not (path / "config.json").exists() and next(path.glob("*.onnx"), None) is not None


__all__ = ["bench", "build_mlx", "build_torch", "export", "load", "quantize", "save", "verify"]
