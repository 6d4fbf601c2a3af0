"""`export --to onnx`: a folder with `model.onnx`, its weights, the tokenizer, and configs that other tools read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import edgeformer
from edgeformer import bundle
from edgeformer.checkpoint import TOKENIZER_FILES, LoadedModel
from edgeformer.errors import ExportError
from edgeformer.export.genai import genai_config
from edgeformer.export.graph import build
from edgeformer.export.graph_ops import FLOAT
from edgeformer.export.storage import DataWriter, link, planned_storage
from edgeformer.spec import digest, to_json
from edgeformer.weights import Source

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote. Sizes in bytes; `notes` are for the user."""

    folder: Path
    manifest: dict[str, Any]
    notes: list[str]


def export_onnx(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str = "fp32",
    target: str = "cpu",
    weights: str = "copy",
    context: int | None = None,
    inline: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write an ONNX artefact.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears when complete. An artefact that is there is replaced.
        precision: fp32, fp16 (weights and arithmetic) or bf16 (weights; arithmetic in float32).
        target: the lowering (`cpu`, `portable`).
        weights: `copy` (self-contained) or `link` (points into the checkpoint's files).
        context: longest sequence; the model's own by default.
        inline: fused ops written out instead of as functions, for runtimes without functions.
        force: replace a folder that is no artefact.
        progress: called as bytes are written.

    Raises:
        ExportError: it can't be written as asked; nothing is left behind.
        CheckpointError: the weights are missing or damaged.
    """
    spec, source = loaded.spec, loaded.require_weights()
    if weights not in ("copy", "link"):
        raise ExportError(f"--weights is copy or link, not {weights!r}")
    context = _context(loaded, context)
    storage, compute = planned_storage(source, precision, weights == "link")
    built = build(spec, storage, target=target, compute=compute, context=context, inline=inline)
    with bundle.writing(Path(output), force=force, keep=source_files(loaded)) as folder:
        linked = _fill(built, source.sources, storage, folder, weights == "link", progress)
        ir.save(built.model, folder / MODEL_FILE)
        _companions(loaded, folder, context, [v.name or "" for v in built.model.graph.inputs])
        linked_names = {n for n, entry in linked.items() if entry["hard_link"]}
        manifest = {
            "edgeformer": edgeformer.__version__,
            "format": "onnx",
            "name": Path(loaded.name).resolve().name,
            "task": spec.task,
            "spec_digest": digest(spec),
            "weights_digest": loaded.weights_digest(),
            "precision": precision,
            "compute": "fp32" if compute == FLOAT else "fp16",
            "target": target,
            "context": context,
            "lowering": built.notes,
            "cache": built.cache,
            "files": {f.name: f.stat().st_size for f in sorted(folder.iterdir()) if f.name not in linked_names},
            "linked": linked,
            "verdict": None,
        }
        bundle.write_manifest(folder, manifest)
    notes = [*loaded.notes, *(f"{text} ({count} layers)" for text, count in built.notes.items())]
    if any(not entry["hard_link"] for entry in linked.values()):
        notes.append(
            "the checkpoint is on another file system, so it could not be hard-linked: edgeformer finds it by path, other"
            " tools will not; use --weights copy for those"
        )
    return Exported(Path(output), manifest, notes)


def source_files(loaded: LoadedModel) -> set[Path]:
    """The files that the model is read from."""
    files = {t.file for source in loaded.require_weights().sources.values() for t in source.stored.parts()}
    if loaded.folder is not None:
        files.add(loaded.folder)
    elif Path(loaded.name).exists():
        files.add(Path(loaded.name))
    return files


def _context(loaded: LoadedModel, context: int | None) -> int:
    longest = loaded.spec.context
    if context is None:
        return longest
    if not 0 < context <= longest:
        raise ExportError(f"--context {context} is outside 1..{longest}, the positions this model has")
    return context


def _fill(
    built: Any,
    sources: dict[str, Source],
    storage: dict[str, ir.DataType],
    folder: Path,
    linking: bool,
    progress: Progress | None,
) -> dict[str, dict]:
    """Give every initializer its data; the linked files."""
    done, total = 0, sum(sources[n].stored.nbytes // getattr(sources[n].part, "of", 1) for n in built.weights)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    initializers = built.model.graph.initializers
    files = sorted({sources[n].stored.file for n in built.weights if linking and sources[n].part is None})
    linked = _link_files(files, folder)
    locations = dict(zip(files, linked, strict=True))
    beside = all(entry["hard_link"] for entry in linked.values())
    writer = DataWriter(folder, DATA_FILE, advance)
    try:
        for name in built.weights:
            source, shape = sources[name], tuple(initializers[name].shape)  # type: ignore[arg-type]
            if source.stored.file in locations and source.part is None:
                initializers[name].const_value = link(source, name, folder, locations[source.stored.file])
            elif beside:
                initializers[name].const_value = writer.source(name, source, storage[name], shape)
            else:
                raise ExportError(
                    f"{source.stored.file} is on another file system than {folder.parent}, and {name} is cut out of it, so"
                    " it can't be linked; use --weights copy, or an output folder beside the checkpoint"
                )
        for name, array in built.constants.items():
            initializers[name].const_value = writer.array(name, array) if beside else ir.tensor(array, name=name)
    finally:
        written = writer.close()
    if not written:
        (folder / DATA_FILE).unlink()
    return linked


def _link_files(files: list[Path], folder: Path) -> dict[str, dict]:
    """Hard-link a checkpoint's files beside the ONNX file; runtimes refuse paths that leave the folder.

    A hard link is no copy, survives a replaced original, and loads in every tool. Across file systems there is none: the
    manifest then keeps the paths, all in one folder, which our runtime passes on.
    """
    linked: dict[str, dict] = {}
    for file in files:
        real = file.resolve()
        entry = {"path": str(real), **bundle.fingerprint(real)}
        try:
            os.link(real, folder / file.name)
            linked[file.name] = {**entry, "hard_link": True}
        except OSError:
            linked[real.name] = {**entry, "hard_link": False}
    if (
        len(
            {e["hard_link"] for e in linked.values()}
            | {str(Path(e["path"]).parent) for e in linked.values() if not e["hard_link"]}
        )
        > 2
    ):
        raise ExportError("the checkpoint's shards lie in several folders of another file system; use --weights copy")
    return linked


def _companions(loaded: LoadedModel, folder: Path, context: int, inputs: list[str]) -> None:
    """The spec, the tokenizer unchanged, and the configs of other tools."""
    (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    if loaded.config is not None:
        (folder / "config.json").write_text(json.dumps(loaded.config, indent=2) + "\n")
    if loaded.folder is not None:
        for name in TOKENIZER_FILES:
            if (file := loaded.folder / name).exists():
                shutil.copyfile(file, folder / name)
    if (config := genai_config(loaded, context, inputs)) is not None:
        (folder / "genai_config.json").write_text(json.dumps(config, indent=1) + "\n")
