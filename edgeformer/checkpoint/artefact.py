"""What every export returns, and the files that it must not overwrite."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeformer
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.companions.pooling import write_embedder
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.companions.writing import write_companions
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import SCHEMA, Compute, Format, Linked, Manifest
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.rope import cache_restart
from edgeformer.layers.sequence_classifier import SequenceClassifier
from edgeformer.layers.token_classifier import TokenClassifier
from edgeformer.models._heads import numbered_labels
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest, to_json


@dataclass(frozen=True)
class Exported:
    """What an export wrote. Sizes in bytes; `notes` are for the user."""

    folder: Path
    manifest: Manifest
    notes: list[str]


def described(
    loaded: LoadedModel,
    folder: Path,
    *,
    format: Format,
    precision: str,
    compute: Compute,
    target: str,
    context: int | None = None,
    linked: dict[str, Linked] | None = None,
    spec_inside: bool = False,
) -> Manifest:
    """The manifest of an artefact whose files are all written: which model it is, and what must not change about it.

    precision: of the weights; compute: of the arithmetic; context: positions, by default the model's; linked: files that it
    links to; spec_inside: store the spec in the manifest, where a `spec.json` would mislead other readers.
    """
    spec, linked = loaded.spec, linked or {}
    hard = {name for name, entry in linked.items() if entry["hard_link"]}
    manifest: Manifest = {
        "schema": SCHEMA,
        "edgeformer": edgeformer.__version__,
        "format": format,
        "name": Path(loaded.name).resolve().name,
        "task": spec.task,
        "spec_digest": digest(spec),
        "weights_digest": loaded.weights_digest(),
        "precision": precision,
        "compute": compute,
        "target": target,
        "context": context or spec.context,
        "files": {name: size for name, size in bundle.sizes(folder).items() if name not in hard},
        "linked": linked,
        "verdict": None,
    }
    if spec_inside:
        manifest["spec"] = to_json(spec)
    return manifest


def source_files(loaded: LoadedModel) -> set[Path]:
    """The files that the model is read from."""
    files = {t.file for source in loaded.require_weights().sources.values() for t in source.stored.parts()}
    if loaded.folder is not None:
        files.add(loaded.folder)
    elif Path(loaded.name).exists():
        files.add(Path(loaded.name))
    return files


@contextlib.contextmanager
def writing_from(loaded: LoadedModel, folder: Path, *, force: bool = False) -> Iterator[Path]:
    """`bundle.writing` for output made from a model, whose files must not change meanwhile.

    Raises:
        ExportError: `folder` is taken, or can't be written to.
        CheckpointError: the model's files were replaced or written to meanwhile.
    """
    with bundle.writing(folder, force=force, keep=source_files(loaded)) as scratch:
        yield scratch
        loaded.require_weights().check_unchanged()


def headless(spec: Model, config: dict[str, Any]) -> dict[str, Any]:
    """A config without the heads that are not built: tools infer a graph's outputs from `architectures`."""
    if isinstance(spec, Encoder) and isinstance(spec.classifier, SequenceClassifier | TokenClassifier):
        return labelled(config, spec.classifier.labels)
    if not isinstance(spec, Encoder) or spec.mlm is not None or spec.classifier is not None:
        return config
    named = config.get("architectures")
    bare = [re.sub(r"For[A-Z]\w*$", "Model", str(name)) for name in named] if isinstance(named, list) else named
    labels = ("id2label", "label2id", "num_labels", "problem_type")
    return {**{k: v for k, v in config.items() if k not in labels}, **({"architectures": bare} if bare else {})}


def labelled(config: dict[str, Any], count: int) -> dict[str, Any]:
    """A config whose `id2label` and `label2id` name as many labels as the head has, by default names where it has others."""
    named, numbered = config.get("id2label"), config.get("label2id")
    names = {str(key): str(name) for key, name in named.items()} if isinstance(named, dict) else {}
    if names.keys() != {str(i) for i in range(count)}:
        return config | numbered_labels(count)
    if not isinstance(numbered, dict) or set(numbered) != {*names.values()}:
        numbered = {name: int(key) for key, name in names.items()}
    return config | {"id2label": names, "label2id": numbered}


def write_surroundings(loaded: LoadedModel, folder: Path, *, named_templates: bool = False) -> list[str]:
    """Write the model's companions into an artefact: tokenizer, chat template, generation defaults, an embedder's modules.

    Returns:
        Notes for the user.

    Raises:
        ExportError: the artefact's tokenizer would produce other ids.
    """
    spec = loaded.spec
    notes = [
        *write_companions(loaded.around, folder, named_templates=named_templates),
        *special_ids(loaded.around).notes,
    ]
    if (length := cache_restart(spec)) is not None:
        notes.append(
            f"beyond {length} tokens this model rotates all positions by other RoPE frequencies. edgeformer's sessions and"
            f" transformers' generate rebuild the KV cache at token {length + 1}; other tools that run this folder don't, and"
            f" their outputs differ from there on. With them, use prompts longer than {length} tokens, or stay below"
        )
    if isinstance(spec, Encoder) and spec.pooling is not None:
        write_embedder(loaded.around, folder, spec.pooling, spec.width, spec.context)
    return notes
