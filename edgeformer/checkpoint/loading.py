"""Resolve MODEL to a spec and, where there are any, its weights.

MODEL is a Hugging Face folder, an edgeformer folder (`spec.json` + `model.safetensors`), a GGUF file, an exported artefact, a
spec file, a named spec, a Hugging Face Hub id, or a LoRA adapter's folder (`BASE+ADAPTER` where it doesn't name its base).
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from edgeformer import discover
from edgeformer.checkpoint.companions.decoder_embedder import without_decoder_head
from edgeformer.checkpoint.companions.evidence import remarks
from edgeformer.checkpoint.companions.files import Companions, Embedded, with_tokenizer
from edgeformer.checkpoint.companions.pooling import with_pooling
from edgeformer.checkpoint.gguf import gguf_in, ggufs_in, read_gguf
from edgeformer.checkpoint.hub import download, is_hub_id
from edgeformer.checkpoint.manifest import Quantization
from edgeformer.checkpoint.old_configs import with_model_type
from edgeformer.checkpoint.reading import HEAD, Reading
from edgeformer.checkpoint.stored_tensors import (
    MANIFEST,
    config_beside,
    has_weights,
    holds_onnx,
    is_mlx,
    manifest_of,
    split_foreign,
    split_quantization,
    stored_tensors,
)
from edgeformer.errors import CheckpointError, ConfigError, ModelNotFound, SpecError
from edgeformer.files.paths import check_links
from edgeformer.files.quoting import listed, plain, shown
from edgeformer.layers.encoder import Encoder
from edgeformer.models._config import HfConfig, read_json
from edgeformer.models._family import Family, family_of
from edgeformer.spec import Model, tensors
from edgeformer.spec.serialization import from_json
from edgeformer.weights.binding import NameMap, Weights, bind
from edgeformer.weights.lora import base_of, base_revision, is_adapter, merged
from edgeformer.weights.parts import Part
from edgeformer.weights.safetensors_file import read_checkpoint, read_header

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedModel:
    """A spec with its weights, and where they came from.

    `weights` is None when only the architecture is known (a spec file, a named spec, a lone config.json). `config` is the
    Hugging Face config it was read from, if any; `notes` lists what was ignored; `quantization` describes how an artefact's
    weights were quantized (method, calibration, bits per weight); `around` holds the tokenizer and the other companion files.
    """

    spec: Model
    weights: Weights | None
    name: str
    folder: Path | None = None
    config: dict | None = None
    notes: list[str] = field(default_factory=list)
    quantization: Quantization | None = None
    around: Companions = Companions()

    @property
    def model_type(self) -> str | None:
        """The model_type that its config says, if it came with one."""
        said = (self.config or {}).get("model_type")
        return said if isinstance(said, str) else None

    def require_weights(self) -> Weights:
        """The weights.

        Raises:
            CheckpointError: there are none.
        """
        if self.weights is None:
            raise CheckpointError(f"{self.name} is an architecture without weights; give a checkpoint folder")
        return self.weights

    def weights_digest(self) -> str:
        """Sixteen hex digits over the stored tensors: names, types, shapes, and samples of each file's bytes.

        Samples, not every byte: a 14 GB checkpoint must link in seconds. A file changed in its middle is caught by the
        size, time and samples that a linked artefact's manifest keeps.
        """
        h = hashlib.sha256()
        for name, source in sorted(self.require_weights().sources.items()):
            h.update(f"{name} {source.stored.dtype} {source.stored.shape} {source.part}\n".encode())
            for t in source.stored.parts():
                with t.open() as f:
                    for at in (0, t.nbytes // 2, max(t.nbytes - 64, 0)):
                        f.seek(t.offset + at)
                        h.update(f.read(min(64, t.nbytes - at)))
        return h.hexdigest()[:16]


def family(model_type: str) -> Family:
    """The family of a model_type.

    Raises:
        ConfigError: there is none; the message names the file to add.
    """
    name = model_type.replace("-", "_")  # xlm-roberta's model_type has a hyphen
    module = None if name.startswith("_") else discover.find("edgeformer.models", name)
    if module is not None:
        return family_of(module) or discover.declared(module, "FAMILY", Family)
    raise ConfigError(
        f"model_type {shown(model_type)} is not known: there is no models/{model_type[:60]}.py (and no entry point of that"
        f" name in the group 'edgeformer.models'). Known: {', '.join(discover.names('edgeformer.models'))}."
        " CONTRIBUTING.md shows how to add a family in one file"
    )


def named_specs() -> dict[str, Path]:
    """Name -> config file of the models that `edgeformer inspect NAME` knows without a download."""
    import edgeformer.models as package

    return {f.stem: f for base in package.__path__ for f in sorted(Path(base, "named").glob("*.json"))}


def load(
    model: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    names: NameMap | None = None,
    allow_unread_config: bool = False,
    allow_nonfinite: bool = False,
    without_head: bool = False,
    revision: str | None = None,
) -> LoadedModel:
    """Read a spec, and bind its weights without reading a tensor.

    Args:
        model: folder, GGUF file, spec file, named spec or hub id (see the module docstring).
        weights: a safetensors file or folder for the spec, instead of the model's own.
        names: canonical tensor pattern -> name in your own state dict (`{i}` is the layer's number); names absent from
            the map are looked up as they are.
        allow_unread_config: ignore keys of config.json that the family doesn't support; `notes` then lists them.
        allow_nonfinite: accept NaN and infinities in the weights; by default they are refused when they are read.
        without_head: take an encoder without its head, whose tensors `notes` then names. An artefact has the head that it was
            exported with.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelNotFound, ConfigError, SpecError, CheckpointError: see their docstrings.
    """
    reading = Reading(allow_unread_config, without_head)
    loaded = _load(model, weights, names, reading, revision)
    if loaded.weights is not None:
        loaded = replace(loaded, notes=reading.told(loaded.notes))
    if allow_nonfinite and loaded.weights is not None:
        return replace(loaded, weights=loaded.weights.allowing_nonfinite())
    return loaded


def _load(
    model: str | os.PathLike,
    weights: str | os.PathLike | None,
    names: NameMap | None,
    reading: Reading,
    revision: str | None,
) -> LoadedModel:
    path, name = Path(model), str(model)
    if not path.exists() and "+" in name and (adapter := _adapter_at(name.rpartition("+")[2])) is not None:
        return _adapted(name.rpartition("+")[0], adapter, name, reading, revision)
    known = named_specs()
    if not path.exists() and name not in known and is_hub_id(name):
        path = download(name, revision)
    if path.is_dir():
        check_links(path, CheckpointError)
    if path.is_dir() and is_adapter(path):
        return _adapted(base_of(path), path, name, reading, None)
    if path.is_file() and path.suffix == ".gguf":
        loaded = _from_gguf(path.absolute(), name, reading)
    elif path.is_file():
        loaded = _from_file(path, name, reading)
    elif path.is_dir() and (file := gguf_in(path)) is not None:
        loaded = replace(_from_gguf(file.absolute(), name, reading), folder=path.resolve())
    elif path.is_dir():
        loaded = _from_folder(path.resolve(), name, reading, skip_weights=weights is not None)
    elif name in known:
        loaded = replace(_from_file(known[name], name, reading), folder=None)
    else:
        near = difflib.get_close_matches(name.lower(), known, 5, 0.5)
        raise ModelNotFound(
            f"{name!r} is neither a folder, a spec file, a hub id (owner/name) nor a named spec"
            + (f"; close matches are {', '.join(near)}" if near else "")
            + ". `edgeformer named` lists all named specs"
        )
    if weights is None:
        return loaded
    source = Path(weights)
    if not source.exists():
        raise CheckpointError(f"{source} does not exist")
    stored = read_checkpoint(source) if source.is_dir() else read_header(source)
    bound, notes = bind(loaded.spec, stored, [names or {}], where=str(source))
    return replace(loaded, weights=bound, notes=loaded.notes + notes)


def _adapter_at(name: str) -> Path | None:
    """The folder of an adapter by its path or hub id; None if it is not an adapter."""
    folder = Path(name)
    if not folder.exists() and is_hub_id(name):
        folder = download(name, None)
    if folder.is_dir():
        check_links(folder, CheckpointError)
    return folder if folder.is_dir() and is_adapter(folder) else None


def _adapted(base: str, adapter: Path, name: str, reading: Reading, revision: str | None) -> LoadedModel:
    """A base model with a LoRA adapter merged. `revision` is the base's; by default the one that the adapter names."""
    folder, notes, wanted = Path(base), [], base_revision(adapter)
    if not folder.exists():
        if not is_hub_id(base):
            raise ModelNotFound(
                f"the adapter {adapter} was trained on {base!r}, which is not a folder here; give the model as BASE+{adapter}"
            )
        if revision is not None and wanted is not None and revision != wanted:
            notes.append(
                f"the adapter was trained on revision {wanted!r} of {base}; it is merged into {revision!r} as requested"
            )
        folder = download(base, revision or wanted)
    elif wanted is not None:
        notes.append(
            f"the adapter was trained on revision {wanted!r} of its base; whether {base} is that revision is not checked"
        )
    if folder.is_dir():
        check_links(folder, CheckpointError)
    if not folder.is_dir() or gguf_in(folder) is not None:
        raise CheckpointError(
            f"an adapter can be merged only into a Hugging Face folder with weights; {base} is a GGUF file"
        )
    loaded = _from_folder(folder.resolve(), name, reading, skip_weights=False, adapter=adapter)
    return replace(loaded, notes=[*notes, *loaded.notes])


def _from_file(path: Path, name: str, reading: Reading) -> LoadedModel:
    data = read_json(path)
    if isinstance(data, dict) and "kind" in data:
        return LoadedModel(_model(data, path), None, name)
    if not isinstance(data, dict):
        raise SpecError(f"{path} is neither a spec nor a Hugging Face config: it holds no JSON object")
    spec, notes = _read_config(reading.config(data, str(path)), reading)
    around = Companions((), data, None, spec.vocab)
    return LoadedModel(spec, None, name, config=data, notes=notes, around=around)


def _from_gguf(file: Path, name: str, reading: Reading) -> LoadedModel:
    read = read_gguf(file, reading.allow_unread)
    spec, more = _read_config(reading.config(read.config, str(file)), reading)
    spec = read.architecture.computed(spec)
    names = [read.architecture.name_map(spec), *read.architecture.spellings(spec)]
    weights, left = bind(spec, read.stored, names, ignored=read.architecture.ignored, where=str(file))
    # files beside a GGUF file are its companions only in a folder made for it
    folder = file.parent if ggufs_in(file.parent) == [read.files[0]] else None
    quantization = _quantization_of(file.parent, file.name)
    around = Companions(() if folder is None else (folder,), read.config, Embedded(file, read.tokenizer), spec.vocab)
    notes = read.notes + more + left
    if folder is not None:
        notes += remarks(folder, read.files)
        spec, pooled = with_pooling(spec, folder)
        notes += pooled
    if isinstance(spec, Encoder) and spec.pooling is None:
        spec = replace(spec, pooling=read.pooling)
    return LoadedModel(spec, weights, name, folder, read.config, notes, quantization, around)


def _model(data: dict, path: Path) -> Model:
    spec = from_json(data)
    if not isinstance(spec, Model):
        raise SpecError(f"{path} describes a {spec.kind}, not a whole model")
    return spec


def _read_config(config: HfConfig, reading: Reading) -> tuple[Model, list[str]]:
    read = family(config.model_type).spec
    try:
        spec = read(config)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as e:
        raise ConfigError(
            f"{config.where} has a value that models/{config.model_type}.py can't read: {plain(str(e), limit=500)}"
        ) from e
    unread = config.done(reading.allow_unread)
    return spec, [*config.notes, *([f"unsupported config keys ignored: {listed(unread)}"] if unread else [])]


def _from_folder(
    folder: Path, name: str, reading: Reading, skip_weights: bool, adapter: Path | None = None
) -> LoadedModel:
    want_weights = not skip_weights and has_weights(folder)
    if adapter is not None:
        if (folder / "spec.json").exists() or holds_onnx(folder):
            raise CheckpointError(
                f"an adapter can be merged only into a Hugging Face folder with weights; {folder} is an artefact or a checkpoint"
                " of edgeformer's, whose tensors have other names. Merge it into the original, and export the result"
            )
        if not (want_weights and (folder / "config.json").exists()):
            raise CheckpointError(
                f"an adapter can be merged only into a Hugging Face folder with weights; {folder} is not one"
            )
    if (file := folder / "spec.json").exists():
        spec, notes = _model(read_json(file), file), []
        config, quantization = config_beside(file)
        config = config if config and discover.find("edgeformer.models", str(config.get("model_type"))) else None
        names: list[NameMap] = [{}]
        prefixes: tuple[str, ...] = ("",)
        ignored: Mapping[str, str] = {}
        tied: Mapping[str, str] = {}
        heads: tuple[str, ...] = ()
        stored = stored_tensors(folder, quantization) if want_weights else None
        if stored and holds_onnx(folder):  # a graph has constants of its own
            wanted = tensors(spec)
            stored = {name: t for name, t in stored.items() if name in wanted}
    elif (file := folder / "config.json").exists():
        config, quantization = split_quantization(read_json(file))
        config, join = split_foreign(folder, config, str(file))
        joined = join(stored_tensors(folder, quantization)) if want_weights else None
        config, inferred = with_model_type(config, None if joined is None else joined.tensors)
        stored = None if joined is None else _renamed(joined.tensors, config)
        reader = reading.config(config, str(file), stored)
        known = family(reader.model_type)
        spec, notes = _read_config(reader, reading)
        notes = [*inferred, *notes]
        names = known.name_maps(spec)
        if stored and is_mlx(folder) and known.mlx_names is not None:
            names = [known.mlx_names]
        prefixes, ignored, tied, heads = known.prefixes, known.ignored, known.tied, known.heads
        if reading.without_head and heads:
            ignored, tied = {**ignored, **dict.fromkeys(heads, HEAD)}, {}
        if joined is not None:
            notes = [*notes, *joined.notes()]
            ignored = {**ignored, **{f"^{re.escape(n)}$": t for n, t in _renamed(joined.unused, config).items()}}
        if adapter is not None and stored is not None:
            turned = [p.name for p in names[0].values() if isinstance(p, Part) and p.transposed]
            stored = merged(stored, adapter, prefixes, turned)
            notes = [*notes, f"the adapter {adapter} was merged"]
    else:
        more = (
            f"; for a GGUF file of a hub id, give {name}/FILE.gguf" if is_hub_id(name) and name.count("/") == 1 else ""
        )
        raise ModelNotFound(f"{folder} holds neither a config.json (Hugging Face) nor a spec.json (edgeformer){more}")
    whole, (spec, more) = spec, with_pooling(spec, folder)
    notes, (ignored, tied) = notes + more, without_decoder_head(whole, spec, names[0], ignored, tied)
    weights = None
    if stored is not None:
        where = str(folder)
        weights, left = bind(
            spec, stored, names, prefixes=prefixes, ignored=ignored, heads=heads, tied=tied, where=where
        )
        notes = notes + left
    used = [] if stored is None else [t.file for source in stored.values() for t in source.parts()]
    if not (folder / MANIFEST).exists():
        notes = notes + remarks(folder, used)
    around = Companions((*(() if adapter is None else (adapter,)), *with_tokenizer(folder)), config, None, spec.vocab)
    return LoadedModel(spec, weights, name, folder, config, notes, _quantization_of(folder), around)


def _quantization_of(folder: Path, file: str | None = None) -> Quantization | None:
    """How an artefact's weights were quantized, from its manifest; None if `file` is not one of its files."""
    data = manifest_of(folder)
    return data.get("quantization") if data is not None and (file is None or file in data["files"]) else None


def _renamed(stored: Mapping[str, T], config: object) -> dict[str, T]:
    """Stored tensors, or what is said of them, under their current names, by the family's `renamed`."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    rules = family(kind).renamed if isinstance(kind, str) else {}
    out = {}
    for name, tensor in stored.items():
        for pattern, new in rules.items():
            name = re.sub(pattern, new, name)
        out[name] = tensor
    return out


__all__ = [
    "LoadedModel",
    "family",
    "load",
    "named_specs",
]
