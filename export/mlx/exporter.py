"""`export --to mlx`: a folder that mlx-lm loads.

If one of mlx-lm's model types can represent the spec, the folder uses that type and its tensor names, and all MLX tools read
it. Any other spec becomes a folder with a `model_file` that builds the model from the spec with edgeformer; mlx-lm runs it only
with `trust_remote_code`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeformer import discover
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, write_surroundings, writing_from
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import Quantization
from edgeformer.errors import ConfigError, ExportError, SpecError
from edgeformer.exporters.hf.config import Misfit, nearest
from edgeformer.exporters.mlx.types._type import MlxType
from edgeformer.exporters.mlx.weights import PRECISIONS, Made, WeightPlan, make, plan
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rope import length_dependent
from edgeformer.models._shape import Unmapped
from edgeformer.spec import Model, Sizes, tensors
from edgeformer.spec.derive import derive
from edgeformer.spec.differences import distance, listed
from edgeformer.spec.serialization import to_json
from edgeformer.spec.task import Task
from edgeformer.weights.formats import GROUP
from edgeformer.weights.parts import Cut, Part, Stack
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
            f"mlx-lm runs decoders only, not a model of kind {spec.kind}; the runtime mlx runs its checkpoint without an export"
        )
    made = plan(spec, weights, precision, group_size, dtype, keep)
    found, reason = stock_type(spec, loaded.model_type)
    if found is None and stock:
        raise ExportError(f"no model type of mlx-lm computes this architecture: {reason}")
    names = {name: [(Part(name), name)] for name in tensors(spec)} if found is None else found.stored
    notes = list(loaded.notes)
    if found is not None:
        config = dict(found.config)
    else:
        config = {"model_type": CODE_TARGET, "model_file": CODE_NAME, "edgeformer_spec": to_json(spec)}
        notes.append(
            f"no model type of mlx-lm computes this architecture ({reason}), so the folder brings its own code:"
            " load it with trust_remote_code=True (--trust-remote-code) where edgeformer[mlx] is installed"
        )
    tensors_made = make(spec, made, names, () if found is None else found.unquantized)
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
            f" are not a multiple of {size}, the checkpoint doesn't quantize them, or they are position tables or stored in"
            " another order"
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


@dataclass(frozen=True)
class Stock:
    """A model type of mlx-lm that computes exactly what a spec says: its name, its config, where tensors are stored, and the ends
    of paths that stay unquantized."""

    name: str
    config: dict[str, Any]
    stored: dict[str, list[tuple[Cut | Stack, str]]]
    unquantized: tuple[str, ...]


def stock_type(spec: Model, prefer: str | None = None) -> tuple[Stock | None, str]:
    """A model type of mlx-lm that computes what the spec says; otherwise None, and what differs in the nearest.

    Where several do, `prefer` (the model_type that the model came with) is first, then common families, then the alphabet.
    """
    misfits: list[Misfit] = []
    for name, kind in _types(prefer):
        with discover.sparing("edgeformer.exporters.mlx.types", name):
            try:
                config, differing = kind.written(spec)
                if not differing:
                    assert isinstance(spec, Decoder)
                    return Stock(name, config, kind.stored(spec), kind.unquantized), ""
            except (Unmapped, ConfigError, SpecError) as e:
                misfits.append(Misfit.of(name, e))
                continue
            misfits.append(Misfit(distance(differing), f"{name}, which differs in {listed(differing)}"))
    return None, f"the nearest is {nearest(misfits)}"


def _types(prefer: str | None) -> list[tuple[str, MlxType]]:
    """All model types, in the order in which they are tried."""
    found = []
    for name, module in discover.each("edgeformer.exporters.mlx.types"):
        with discover.sparing("edgeformer.exporters.mlx.types", name):
            found.append((name, discover.declared(module, "TYPE", MlxType)))
    return sorted(found, key=lambda t: (t[0] != prefer, not t[1].family.common, t[0]))


def stock_of(spec: Model) -> Callable[[int], dict[str, Any]]:
    """mlx-lm's config of a spec that a model type of mlx-lm computes, for any number of blocks."""

    def config(blocks: int) -> dict[str, Any]:
        found, reason = stock_type(derive(spec, Sizes(layers=blocks)))
        if found is None:
            raise ExportError(f"no model type of mlx-lm computes this architecture: {reason}")
        return found.config

    return config


def _companions(loaded: LoadedModel, folder: Path, config: dict[str, Any]) -> list[str]:
    """Write the config with special ids, the model's companions, and its code if it needs any; returns notes."""
    config |= special_ids(loaded.around).as_config()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if "model_file" in config:
        (folder / config["model_file"]).write_text(MODEL_FILE)
        (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    return write_surroundings(loaded, folder)


__all__ = ["PRECISIONS", "Stock", "export_mlx", "stock_type"]


EXPORTER = export_mlx
