"""`export --to hf`: a folder that transformers loads, for any spec that one of the families can represent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer import discover
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, write_surroundings, writing_from
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.layers.encoder import Encoder
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family, family_of
from edgeformer.models._shape import Unmapped
from edgeformer.spec import Model, tensors
from edgeformer.spec.serialization import to_json
from edgeformer.weights.binding import Source, stored_part
from edgeformer.weights.parts import Cut, Stack
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.rounding import stored_precision
from edgeformer.weights.safetensors_writer import Group, write_shards


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
    config, family = family_config(spec)
    config |= special_ids(loaded.around).as_config()
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
    return Exported(Path(output), manifest, [*loaded.notes, *surrounded])


def family_config(spec: Model) -> tuple[dict[str, Any], Family]:
    """The config.json of the first family that can represent the spec, and the family.

    The config is verified by a round trip: the family's own reader has to turn it back into the same spec.

    Raises:
        ExportError: there is none; the message gives each family's reason.
    """
    reasons = []
    for name, module in discover.each("edgeformer.models"):
        with discover.sparing("edgeformer.models", name):
            family = family_of(module)
            if family is None or family.config is None:
                continue
            try:
                config = family.config(spec)
            except Unmapped as e:
                reasons.append(f"{name}: {e}")
                continue
            again = family.spec(HfConfig(dict(config), f"the {name} config of this spec"))
            if _comparable(again) == _comparable(spec):
                return config, family
            reasons.append(f"{name}: its config would describe a different architecture")
    raise ExportError(f"edgeformer doesn't write this architecture as a transformers folder yet: {'; '.join(reasons)}")


def _comparable(spec: Model) -> Any:
    """The spec's JSON without fields that don't affect a trained model's outputs or that transformers doesn't have."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k not in ("init", "dropout", "pooling")}
        return [stripped(v) for v in value] if isinstance(value, list) else value

    return stripped(to_json(spec))


def _groups(spec: Model, sources: dict[str, Source], family: Family, dtype: np.dtype) -> list[Group]:
    """Tensors under the family's names; those stored as one are reassembled from their parts."""
    prefix = family.prefixes[0]
    if isinstance(spec, Encoder) and spec.pooler:
        prefix = ""  # a bare model's names have no prefix
    names, found, groups = family.name_map(spec), {}, []

    def full(name: str) -> str:
        return name if name.startswith(family.unprefixed) else prefix + name

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
