"""`export --to mlx`: a folder that mlx-lm loads.

Where the spec maps onto a model type that mlx-lm has, the folder has that type and its names, and every tool of the MLX world
reads it. Any other spec becomes a folder with a `model_file` that builds the model from the spec with edgeformer; mlx-lm runs
it only with `trust_remote_code`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeformer import discover
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, write_surroundings, writing_from
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.loading import LoadedModel, family
from edgeformer.checkpoint.manifest import Quantization
from edgeformer.errors import ExportError
from edgeformer.exporters.mlx.weights import PRECISIONS, Made, WeightPlan, make, plan
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.layers.rope import length_dependent
from edgeformer.models._shape import Unmapped
from edgeformer.spec import Model, tensors
from edgeformer.spec.serialization import to_json
from edgeformer.spec.task import Task
from edgeformer.weights.binding import stored_part
from edgeformer.weights.formats import GROUP
from edgeformer.weights.parts import Part
from edgeformer.weights.rounding import bits_per_weight
from edgeformer.weights.safetensors_writer import Group, write_shards

CODE_TARGET, CODE_NAME = "edgeformer", "edgeformer_model.py"
MODEL_FILE = '''"""The model of this folder for mlx-lm (trust_remote_code): edgeformer builds it from the spec in config.json."""

from edgeformer.backends.mlx.lm import Model, ModelArgs

__all__ = ["Model", "ModelArgs"]
'''


def export_mlx(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str | None = None,
    group_size: int | None = None,
    dtype: str | None = None,
    stock: bool = False,
    keep: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write an mlx-lm folder.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears when complete.
        precision: fp32, fp16 or bf16; q4 or q8: the bits that every other runtime has (plain weights are rounded to nearest);
            4bit or 8bit: linear maps and embeddings affine-quantized as mlx-lm quantizes them. By default what the checkpoint
            is stored in.
        group_size: of 4bit and 8bit, weights per scale: 32, 64 or 128; by default 64, or what the checkpoint is stored in.
        dtype: fp32, fp16 or bf16, with quantized weights: scales, what isn't quantized, and so mlx-lm's arithmetic. By default
            what the checkpoint is stored in; with q4 and q8 fp16, which holds their scales.
        keep: patterns of tensors that q4 and q8 leave as they are.
        stock: refuse a spec that no model type of mlx-lm can hold, instead of writing a `model_file` for it.
        force: replace a folder that is no artefact.
        progress: called with (bytes done, bytes in all).

    Raises:
        ExportError: it can't be written as asked; nothing is left behind.
        RuntimeUnavailable: quantizing needs MLX.
    """
    spec, weights = loaded.spec, loaded.require_weights()
    if spec.task != Task.TEXT_GENERATION:
        raise ExportError(
            f"mlx-lm runs decoders only, this is a {spec.kind}; the runtime mlx runs its checkpoint as it is"
        )
    made = plan(spec, weights, precision, group_size, dtype, keep)
    config, reason = stock_config(spec)
    if config is None and stock:
        raise ExportError(f"edgeformer doesn't write this architecture as a model type of mlx-lm yet: {reason}")
    names = _stored_names(spec, config)
    notes = list(loaded.notes)
    if config is None:
        config = {"model_type": CODE_TARGET, "model_file": CODE_NAME, "edgeformer_spec": to_json(spec)}
        notes.append(
            f"edgeformer doesn't write this architecture as a model type of mlx-lm yet ({reason}), so the folder brings its own"
            " code: load it with trust_remote_code=True (--trust-remote-code), where edgeformer[mlx] is installed"
        )
    tensors_made = make(spec, made, names)
    notes += _remarks(spec, made, tensors_made)
    if tensors_made.settings:
        config |= {"quantization": tensors_made.settings, "quantization_config": tensors_made.settings}
    with writing_from(loaded, Path(output), force=force) as folder:
        write_shards(folder, tensors_made.groups, {"format": "mlx"}, progress)
        notes += _companions(loaded, folder, config)
        manifest = described(
            loaded,
            folder,
            format="mlx",
            precision=made.label(),
            compute=made.dtype,
            target=config["model_type"],
            spec_inside=True,
        )
        manifest["quantization"] = _recorded(loaded, made, tensors_made) if made.same_bits else None
        bundle.write_manifest(folder, manifest)
    return Exported(Path(output), manifest, notes)


def _remarks(spec: Model, plan: WeightPlan, made: Made) -> list[str]:
    """What the user should know about these weights."""
    notes = []
    if length_dependent(spec):
        notes.append(
            "rotation depends on the sequence's length, and mlx-lm takes a prompt in pieces: beyond the original context its"
            " logits differ from one pass (the runtime mlx takes such prompts whole)"
        )
    if made.left:
        share = sum(g.nbytes() for g in made.groups if made.left & g.tensors.keys()) / sum(
            g.nbytes() for g in made.groups
        )
        size = GROUP if plan.own is None else plan.own.group_size
        notes.append(
            f"not quantized: {len(made.left)} maps, {share:.0%} of the bytes ({min(made.left)}, ...): their inputs are no"
            f" multiple of {size}, or they are position tables or stacked maps (experts), which stay as they are"
        )
    if plan.own is not None and plan.own.bits == 8 and plan.dtype == "bf16":
        notes.append(
            "bf16 scales have eight bits, as the codes: weights are off by up to 1.5 steps; --dtype fp16 avoids that"
        )
    return notes


def _recorded(loaded: LoadedModel, plan: WeightPlan, made: Made) -> Quantization:
    """What the manifest says of weights in our groups; MLX stores a bias beside each scale."""
    count = sum(math.prod(source.shape) for source in plan.weights.sources.values())
    recorded = Quantization(**(loaded.quantization or {"method": "rtn"}))
    recorded["bits_per_weight"] = bits_per_weight(plan.weights)
    recorded["stored_bits_per_weight"] = stored_bits(made.groups, count)
    return recorded


def stored_bits(groups: Sequence[Group], count: int) -> float:
    """Bits that a file takes for each weight."""
    return round(8 * sum(g.nbytes() for g in groups) / count, 3)


def stock_config(spec: Model) -> tuple[dict[str, Any] | None, str]:
    """The config of the first model type of mlx-lm that holds the spec; or None, and why each of them doesn't."""
    reasons = []
    for name, module in discover.each("edgeformer.exporters.mlx.types"):
        with discover.sparing("edgeformer.exporters.mlx.types", name):
            try:
                return module.config(spec), ""
            except Unmapped as e:
                reasons.append(f"{name}: {e}")
    return None, "; ".join(reasons)


def _stored_names(spec: Model, config: dict[str, Any] | None) -> dict[str, list[str]]:
    """Stored name -> the canonical tensors that it holds, one after the other along axis 0."""
    if config is None:
        return {name: [name] for name in tensors(spec)}
    known = family(config["model_type"])
    names = known.mlx_names or known.name_map(spec)
    parts: dict[str, list[tuple[int, str]]] = {}
    for name in tensors(spec):
        part = stored_part(names, name)
        full = part.name if part.name.startswith("lm_head.") else f"model.{part.name}"
        assert isinstance(part, Part)  # what these types store is whole, or equal slices
        parts.setdefault(full, []).append((part.index, name))
    return {full: [name for _, name in sorted(found)] for full, found in parts.items()}


def _companions(loaded: LoadedModel, folder: Path, config: dict[str, Any]) -> list[str]:
    """The config with special ids, what surrounds the weights, and the model's code where it brings its own; notes."""
    config |= special_ids(loaded.around).as_config()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if "model_file" in config:
        (folder / config["model_file"]).write_text(MODEL_FILE)
        (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    return write_surroundings(loaded, folder)


__all__ = ["PRECISIONS", "export_mlx", "stock_config"]


EXPORTER = export_mlx
