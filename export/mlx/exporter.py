"""`export --to mlx`: a folder that mlx-lm loads.

If one of mlx-lm's model types can represent the spec, the folder uses that type and its tensor names, and all MLX tools read
it. Any other spec becomes a folder with a `model_file` that builds the model from the spec with edgeformer; mlx-lm runs it only
with `trust_remote_code`.
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
        output: folder to write; it appears only when complete.
        precision: fp32, fp16 or bf16; q4 or q8: the same bits as on other runtimes (plain weights are rounded to nearest); 4bit
            or 8bit: linear layers and embeddings, affine-quantized as mlx-lm does. Defaults to the checkpoint's stored precision.
        group_size: weights per scale of 4bit and 8bit: 32, 64 or 128. Defaults to the checkpoint's, or 64.
        dtype: fp32, fp16 or bf16: the dtype of scales and unquantized tensors beside quantized weights, and so of mlx-lm's
            arithmetic. Defaults to the checkpoint's dtype; for q4 and q8 to fp16, which holds their scales exactly.
        keep: name patterns of tensors that q4 and q8 leave unquantized.
        stock: refuse a spec that no mlx-lm model type can represent, instead of writing a `model_file` for it.
        force: replace an existing folder even if it is not an artefact.
        progress: called with (bytes done, total bytes).

    Raises:
        ExportError: the model can't be written as requested; nothing is left behind.
        RuntimeUnavailable: quantization needs MLX, which is not installed.
    """
    spec, weights = loaded.spec, loaded.require_weights()
    if spec.task != Task.TEXT_GENERATION:
        raise ExportError(
            f"mlx-lm runs decoders only, and this model is a {spec.kind}; the runtime mlx runs its checkpoint without an export"
        )
    made = plan(spec, weights, precision, group_size, dtype, keep)
    config, reason = stock_config(spec)
    if config is None and stock:
        raise ExportError(f"edgeformer doesn't map this architecture to an mlx-lm model type yet: {reason}")
    names = _stored_names(spec, config)
    notes = list(loaded.notes)
    if config is None:
        config = {"model_type": CODE_TARGET, "model_file": CODE_NAME, "edgeformer_spec": to_json(spec)}
        notes.append(
            f"edgeformer doesn't map this architecture to an mlx-lm model type yet ({reason}), so the folder brings its own"
            " code: load it with trust_remote_code=True (--trust-remote-code) where edgeformer[mlx] is installed"
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
    """Notes for the user about these weights."""
    notes = []
    if length_dependent(spec):
        notes.append(
            "RoPE depends on the sequence length, and mlx-lm prefills in chunks: beyond the original context its logits differ"
            " from a single pass (the runtime mlx prefills such prompts in one pass)"
        )
    if made.left:
        share = sum(g.nbytes() for g in made.groups if made.left & g.tensors.keys()) / sum(
            g.nbytes() for g in made.groups
        )
        size = GROUP if plan.own is None else plan.own.group_size
        notes.append(
            f"not quantized: {len(made.left)} weight matrices, {share:.0%} of the bytes ({min(made.left)}, ...): their inputs"
            f" are not a multiple of {size}, or they are position tables or stacked experts, which stay unquantized"
        )
    if plan.own is not None and plan.own.bits == 8 and plan.dtype == "bf16":
        notes.append(
            "bf16 scales have only eight significant bits, as the codes do: weights are off by up to 1.5 quantization steps;"
            " use --dtype fp16 to avoid that"
        )
    return notes


def _recorded(loaded: LoadedModel, plan: WeightPlan, made: Made) -> Quantization:
    """The manifest's `quantization` of weights in edgeformer's groups; MLX stores a bias beside each scale."""
    count = sum(math.prod(source.shape) for source in plan.weights.sources.values())
    recorded = Quantization(**(loaded.quantization or {"method": "rtn"}))
    recorded["bits_per_weight"] = bits_per_weight(plan.weights)
    recorded["stored_bits_per_weight"] = stored_bits(made.groups, count)
    return recorded


def stored_bits(groups: Sequence[Group], count: int) -> float:
    """Bits per weight in the file, scales and biases included."""
    return round(8 * sum(g.nbytes() for g in groups) / count, 3)


def stock_config(spec: Model) -> tuple[dict[str, Any] | None, str]:
    """The config of the first mlx-lm model type that can represent the spec; otherwise None, and each type's reason."""
    reasons = []
    for name, module in discover.each("edgeformer.exporters.mlx.types"):
        with discover.sparing("edgeformer.exporters.mlx.types", name):
            try:
                return discover.function(module, "config")(spec), ""
            except Unmapped as e:
                reasons.append(f"{name}: {e}")
    return None, "; ".join(reasons)


def _stored_names(spec: Model, config: dict[str, Any] | None) -> dict[str, list[str]]:
    """Stored name -> the canonical tensors concatenated in it along axis 0."""
    if config is None:
        return {name: [name] for name in tensors(spec)}
    known = family(config["model_type"])
    names = known.mlx_names or known.name_map(spec)
    parts: dict[str, list[tuple[int, str]]] = {}
    for name in tensors(spec):
        part = stored_part(names, name)
        full = part.name if part.name.startswith("lm_head.") else f"model.{part.name}"
        assert isinstance(part, Part)  # these model types store whole tensors or equal slices only
        parts.setdefault(full, []).append((part.index, name))
    return {full: [name for _, name in sorted(found)] for full, found in parts.items()}


def _companions(loaded: LoadedModel, folder: Path, config: dict[str, Any]) -> list[str]:
    """Write the config with special ids, the model's companions, and its code if it needs any; returns notes."""
    config |= special_ids(loaded.around).as_config()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if "model_file" in config:
        (folder / config["model_file"]).write_text(MODEL_FILE)
        (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    return write_surroundings(loaded, folder)


__all__ = ["PRECISIONS", "export_mlx", "stock_config"]


EXPORTER = export_mlx
