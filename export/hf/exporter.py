"""`export --to hf`: a folder that transformers loads, for any spec that one of the families can represent."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, labelled, write_surroundings, writing_from
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ExportError
from edgeformer.exporters.hf.config import completed, family_config, full_name
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.models._family import Family
from edgeformer.spec import Model, tensors
from edgeformer.weights.binding import Source, stored_part
from edgeformer.weights.parts import Cut, Part, Stack
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.rounding import stored_precision
from edgeformer.weights.safetensors_writer import Group, write_shards

_LABELS = ("id2label", "label2id", "problem_type", "sentence_transformers", "sbert_ce_default_activation_function")
"""What a classifier's outputs mean; the last two are a cross-encoder's activation."""


def export_hf(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a Hugging Face folder: `config.json`, `model.safetensors` with transformers' tensor names, the tokenizer.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears only when complete.
        precision: fp32, fp16 or bf16. Defaults to the widest stored dtype (quantized weights: fp32, which represents them
            exactly).
        force: replace an existing folder even if it is not an artefact.
        progress: called with (bytes done, total bytes).

    Raises:
        ExportError: no transformers family can represent the spec (the message gives each reason), or writing failed.
    """
    spec, weights = loaded.spec, loaded.require_weights()
    if precision is None:
        precision = stored_precision(weights)
    if precision not in FLOAT_TYPES:
        raise ExportError(f"unknown transformers precision {precision!r}; use one of {', '.join(FLOAT_TYPES)}")
    fit = family_config(spec, prefer=loaded.model_type)
    config, family = completed(fit.config, special_ids(loaded.around).as_config()), fit.family
    if "id2label" in config:
        own = {key: value for key in _LABELS if (value := (loaded.config or {}).get(key)) is not None}
        config = labelled(config | own, len(config["id2label"]))
    config["dtype"] = FLOAT_TYPES[precision].library
    groups = _groups(spec, weights.sources, family, FLOAT_TYPES[precision].numpy)
    with writing_from(loaded, Path(output), force=force) as folder:
        write_shards(folder, groups, {"format": "pt"}, progress)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        surrounded = write_surroundings(loaded, folder)
        manifest = described(
            loaded,
            folder,
            format="checkpoint",
            precision=precision,
            compute="fp32",
            target=config["model_type"],
            spec_inside=True,
        )
        bundle.write_manifest(folder, manifest)
    return Exported(Path(output), manifest, [*loaded.notes, fit.note(), *surrounded])


def _groups(spec: Model, sources: dict[str, Source], family: Family, dtype: np.dtype) -> list[Group]:
    """Tensors under the family's names; those stored as one are reassembled from their parts."""
    names, found, groups = family.name_map(spec), {}, []
    full = partial(full_name, spec, family)
    for name in tensors(spec):
        part = stored_part(names, name)
        if isinstance(part, Stack):
            shape = part.part_shape(sources[name].shape)
            make = lambda part=part, name=name: [  # noqa: E731
                np.ascontiguousarray(x) for x in part.parts(_read(sources, name, dtype))
            ]
            groups.append(Group({full(n): (dtype, shape) for n in part.names()}, make))
        else:
            found.setdefault(full(part.name), []).append((part, name))
    for stored, name in (family.copies(spec) if family.copies is not None else {}).items():
        found.setdefault(full(stored), []).append((Part(stored), name))
    for stored, parts in found.items():
        shape = parts[0][0].whole(sources[parts[0][1]].shape)
        make = lambda parts=parts, shape=shape: [_joined(parts, shape, sources, dtype)]  # noqa: E731
        groups.append(Group({stored: (dtype, shape)}, make))
    return groups


def _joined(
    parts: list[tuple[Cut, str]], shape: tuple[int, ...], sources: dict[str, Source], dtype: np.dtype
) -> np.ndarray:
    """A stored tensor assembled from its parts."""
    whole = np.empty(shape, dtype)
    for part, name in parts:
        part.put(whole, _read(sources, name, dtype))
    return whole


def _read(sources: dict[str, Source], name: str, dtype: np.dtype) -> np.ndarray:
    x = sources[name].read()
    if dtype == np.float16 and np.abs(x.astype(np.float32)).max(initial=0) > 65504:
        raise ExportError(
            f"{name} has a weight that exceeds fp16's largest value (65504); use --precision fp32 or bf16"
        )
    return x.astype(dtype, copy=False)


EXPORTER = export_hf
