"""`export --to onnx`: a folder with `model.onnx`, its weights, the tokenizer, and the configs that other tools read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, headless, write_surroundings, writing_from
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import Linked, Quantization, Variant
from edgeformer.errors import ArtefactError, ExportError
from edgeformer.exporters.hf.config import known_config
from edgeformer.exporters.onnx.filling import Progress, fill
from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.genai import genai_config
from edgeformer.exporters.onnx.graph import BuiltGraph, CacheScales, build, cache_windows, numbered, target_class
from edgeformer.exporters.onnx.graph_ops import FLOAT
from edgeformer.exporters.onnx.one_node import as_one_node
from edgeformer.exporters.onnx.storage import StoragePlan, plan
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest, to_json
from edgeformer.spec.task import Task
from edgeformer.weights.formats import Format
from edgeformer.weights.rounding import bits_per_weight


def export_onnx(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str | None = None,
    target: str = "cpu",
    weights: str = "copy",
    context: int | None = None,
    inline: bool = False,
    accuracy_level: int | None = None,
    keep: Sequence[str] = (),
    cache_scales: CacheScales | None = None,
    windowed_cache: bool = False,
    eos: Sequence[int] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write an ONNX artefact.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears only when complete. An existing artefact is replaced.
        precision: fp32, fp16 (weights and arithmetic), bf16 (weights; arithmetic in float32); q4 or q8 (weights in groups of
            32; arithmetic in float32), q4f16 or q8f16 (other tensors and arithmetic in fp16). Defaults to fp32, or to a quantized
            checkpoint's stored format; weights that aren't quantized yet are rounded to nearest.
        target: the lowering, a file in `export/onnx/targets`: `cpu`, `cuda`, `webgpu`, `coreml` (ONNX Runtime's execution
            providers), `web` (a transformers.js folder), `portable` (plain ai.onnx).
        weights: `copy` (self-contained) or `link` (points into the checkpoint's files).
        context: longest sequence; defaults to the model's.
        inline: write fused ops as their bodies instead of as functions, for runtimes without function support.
        accuracy_level: for q4 and q8. 0: matrix products use dequantized weights. 4: ONNX Runtime first rounds activations to
            int8, which is faster on CPUs and changes the outputs. Defaults to 4 for q8 on the target cpu, whose provider has no
            fast 8-bit kernel at level 0, else to 0.
        keep: name patterns of tensors that q4 and q8 leave unquantized.
        cache_scales: scales of an int8 KV cache, from `edgeformer.quantization.kv_scales.cache_scales`; by default the cache
            has the dtype of the arithmetic.
        windowed_cache: let the KV caches of layers with a sliding window hold the window only (target `cpu`). Needs ONNX Runtime
            1.29 or newer.
        eos: end-of-text ids, for a model whose files define none (GenAI requires one).
        force: replace an existing folder even if it is not an artefact.
        progress: called with (bytes done, total bytes).

    Raises:
        ExportError: the model can't be written as requested; nothing is left behind.
        CheckpointError: the weights are missing or damaged.
    """
    spec = loaded.spec
    if weights not in ("copy", "link"):
        raise ExportError(f"--weights must be copy or link, not {weights!r}")
    context = _context(loaded, context)
    if accuracy_level not in (None, 0, 4):
        raise ExportError(f"--accuracy-level must be 0 (exact) or 4 (int8 activations), not {accuracy_level}")
    kind = target_class(target)
    made = plan(spec, loaded.require_weights(), precision, weights == "link", keep)
    if kind.precisions is not None and made.precision not in kind.precisions:
        raise ExportError(f"the target {target} supports {', '.join(kind.precisions)}, not {made.precision}")
    pair = isinstance(spec, EncoderDecoder)
    encoder, (model_file, data_file) = kind.pair_files(made.precision) if pair else (None, kind.files(made.precision))
    if weights == "link" and "/" in model_file:
        raise ExportError(f"the target {target} needs its weights in a separate file ({data_file}); use --weights copy")
    others = _other_precisions(loaded, Path(output), kind, model_file)
    config = _config(loaded, kind, [made.precision, *(o["precision"] for o in others.values())])
    windows = cache_windows(spec, target) if windowed_cache else {}
    built = build(
        spec,
        made.storage,
        target=target,
        compute=made.compute,
        context=context,
        inline=inline,
        accuracy_level=accuracy_level,
        cache_scales=cache_scales,
        windows=windows,
    )
    levels = {bits: kind.level_of(bits, made.compute, accuracy_level) for bits in _bits(made)}
    uncovered = None
    if windows:
        uncovered = "it has no windowed KV caches"
    elif kind.one_node and not inline:
        uncovered = as_one_node(built, spec, made, levels, cache_scales)
    level = max(levels.values(), default=0)
    reader = _reader(spec, target, made, inline, accuracy_level) if pair else None
    with writing_from(loaded, Path(output), force=force) as folder:
        (folder / model_file).parent.mkdir(exist_ok=True)
        linked: dict[str, Linked] = {}
        if reader is not None and encoder is not None:
            linked |= fill(reader, made, (folder / encoder[0]).parent, encoder[1], weights == "link", progress)
            ir.save(reader.model, folder / encoder[0])
        linked |= fill(built, made, (folder / model_file).parent, data_file, weights == "link", progress)
        ir.save(built.model, folder / model_file)
        for name in (name for other in others.values() for name in other["files"]):
            bundle.keep_file(Path(output) / name, folder / name)
        surrounded = _companions(loaded, folder, config, named_templates=kind.model_types is not None)
        inputs = [v.name or "" for v in built.model.graph.inputs]
        if "/" not in model_file:
            genai, more = genai_config(loaded, context, inputs, built.cache == "shared", eos, windows)
            surrounded += more
            if genai is not None:
                (folder / "genai_config.json").write_text(json.dumps(genai, indent=1) + "\n")
        manifest = described(
            loaded,
            folder,
            format="onnx",
            precision=made.precision,
            compute="fp32" if made.compute == FLOAT else "fp16",
            target=target,
            context=context,
            linked=linked,
        )
        manifest["quantization"] = _quantization(loaded, made, built.codes, level)
        manifest["model_file"] = model_file
        if encoder is not None:
            manifest["encoder_file"] = encoder[0]
        if others:
            manifest["others"] = others
        manifest["estimate"] = kind.estimate(built.model)
        manifest["lowering"] = built.notes
        manifest["one_node"] = kind.one_node and not inline and uncovered is None
        manifest["cache"] = built.cache
        if windows:
            manifest["cache_windows"] = numbered(spec, windows)
        manifest["kv"] = made.compute.name.lower() if cache_scales is None else "int8"
        bundle.write_manifest(folder, manifest)
    if windows:
        surrounded.append(
            f"KV caches of {len(windows)} layers hold their window only: the file needs ONNX Runtime 1.29 or newer on the CPU and"
            " buffers of the window's size, as edgeformer and GenAI allocate them; Optimum can't run it"
        )
    notes = [*loaded.notes, *surrounded, *(f"{text} ({count} layers)" for text, count in built.notes.items())]
    if uncovered is not None and spec.task == Task.TEXT_GENERATION:
        notes.append(f"edgeformer's native library runs this model's fused ops, not the whole step: {uncovered}")
    if level and accuracy_level is None:
        notes.append(
            "q8: ONNX Runtime rounds activations to int8 (accuracy level 4), because it has no fast kernel for 8-bit weights at"
            " level 0; --accuracy-level 0 is exact but decodes about thirty times slower. `edgeformer quality` measures the"
            " difference"
        )
    if made.precision == "bf16":
        notes.append(
            "weights are stored in bf16 and computed in float32, because ONNX Runtime's CPU provider has no bf16 kernels"
        )
    if any(not entry["hard_link"] for entry in linked.values()):
        notes.append(
            "the checkpoint is on another file system, so it could not be hard-linked: edgeformer finds it by its path, but other"
            " tools can't; use --weights copy for them"
        )
    if any(entry["hard_link"] for entry in linked.values()):
        notes.append(
            "the checkpoint's files are hard-linked: runtimes load them, but the package onnx (onnx.load, onnx.checker; seen in"
            " 1.23) rejects files with several hard links; use --weights copy for it"
        )
    return Exported(Path(output), manifest, notes)


def _reader(spec: Model, target: str, made: StoragePlan, inline: bool, accuracy_level: int | None) -> BuiltGraph:
    """The encoder graph of an encoder–decoder model."""
    return build(
        spec,
        made.storage,
        target=target,
        compute=made.compute,
        inline=inline,
        accuracy_level=accuracy_level,
        program="encoder",
    )


def _bits(made: StoragePlan) -> set[int]:
    """The bit widths of the quantized weights."""
    return {held.bits for held in made.storage.values() if isinstance(held, Format)}


def _quantization(
    loaded: LoadedModel, made: StoragePlan, codes: Collection[str], accuracy_level: int
) -> Quantization | None:
    """The manifest's `quantization`; None if no weight is quantized."""
    if not codes:
        return None
    plain = {name: held.itemsize * 8 for name, held in made.storage.items() if isinstance(held, ir.DataType)}
    bits = bits_per_weight(made.weights, {name: int(size) for name, size in plain.items()})
    recorded = Quantization(**(loaded.quantization or {"method": "rtn"}))
    recorded["bits_per_weight"], recorded["accuracy_level"] = bits, accuracy_level
    return recorded


def _context(loaded: LoadedModel, context: int | None) -> int:
    longest = loaded.spec.context
    if context is None:
        return longest
    if not 0 < context <= longest:
        raise ExportError(f"--context {context} is outside 1..{longest}, the model's context")
    return context


def _other_precisions(
    loaded: LoadedModel, output: Path, kind: type[FunctionOps], model_file: str
) -> dict[str, Variant]:
    """The same model's graphs of other precisions already in the folder, for targets with a file name per precision: model
    file -> its precision, arithmetic, quantization and files. They are kept."""
    if "/" not in model_file or not (output / bundle.MANIFEST).exists():
        return {}
    try:
        there = bundle.read_manifest(output)
        bundle.check_files(output, there)
    except ArtefactError:
        return {}
    same = ("spec_digest", "weights_digest", "target")
    wanted = {"spec_digest": digest(loaded.spec), "weights_digest": loaded.weights_digest(), "target": "web"}
    if any(there.get(key) != wanted[key] for key in same):
        return {}
    found, last = dict(there.get("others") or {}), there.get("model_file", "model.onnx")
    precision, parent = there["precision"], last.rsplit("/", 1)[0]
    graphs = kind.pair_files(precision) if isinstance(loaded.spec, EncoderDecoder) else (kind.files(precision),)
    mine = {path for graph, data in graphs for path in (graph, f"{parent}/{data}")}
    files = [name for name in there["files"] if name in mine]
    found[last] = {
        "precision": precision,
        "compute": there["compute"],
        "quantization": there.get("quantization"),
        "files": files,
    }
    found.pop(model_file, None)
    return found


def _config(loaded: LoadedModel, kind: type[FunctionOps], precisions: list[str]) -> dict[str, Any] | None:
    """The content of config.json: the model's own config; where the target's reader needs one, one of a model type that it knows.

    Raises:
        ExportError: the target needs a config, and no family that it knows can represent the spec.
    """
    config = loaded.config
    if kind.model_types is not None:
        config = known_config(loaded.spec, config, kind.model_types)
    if config is None:
        return None
    return kind.config(headless(loaded.spec, config), precisions, pair=isinstance(loaded.spec, EncoderDecoder))


def _companions(
    loaded: LoadedModel, folder: Path, config: dict[str, Any] | None, *, named_templates: bool
) -> list[str]:
    """Write the spec, the config for other tools, and the model's companions; returns notes."""
    (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return write_surroundings(loaded, folder, named_templates=named_templates)


EXPORTER = export_onnx
