"""From what a user calls MODEL to a spec and, where there are any, its weights.

MODEL is a Hugging Face folder, an edgeformer folder (`spec.json` + `model.safetensors`), a GGUF file, an exported artefact, a
spec file, a named spec, a Hugging Face Hub id, or a LoRA adapter's folder (`BASE+ADAPTER` where it doesn't say its base).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from edgeformer import discover
from edgeformer.adapters import base_of, is_adapter, merged
from edgeformer.errors import CheckpointError, ConfigError, ModelNotFound, SpecError
from edgeformer.gguf_checkpoint import gguf_in, read_gguf
from edgeformer.models._config import HfConfig, read_json
from edgeformer.parts import Part
from edgeformer.safetensors_file import StoredTensor, read_checkpoint, read_header
from edgeformer.serialization import from_json, to_json
from edgeformer.spec import Model, tensors
from edgeformer.stored_tensors import (
    config_beside,
    has_weights,
    holds_onnx,
    is_mlx,
    manifest_of,
    split_quantization,
    stored_tensors,
)
from edgeformer.weights import NameMap, Weights, bind, name_map

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "added_tokens.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A spec with its weights, and where they came from.

    `weights` is None when only the architecture is known (a spec file, a named spec, a lone config.json). `config` is the
    Hugging Face config it was read from, if any; `notes` says what was left aside; `quantization` says how an artefact's weights
    were quantized (method, calibration, bits per weight).
    """

    spec: Model
    weights: Weights | None
    name: str
    folder: Path | None = None
    config: dict | None = None
    notes: list[str] = field(default_factory=list)
    quantization: dict | None = None

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
                with t.file.open("rb") as f:
                    for at in (0, t.nbytes // 2, max(t.nbytes - 64, 0)):
                        f.seek(t.offset + at)
                        h.update(f.read(min(64, t.nbytes - at)))
        return h.hexdigest()[:16]


def family(model_type: str) -> ModuleType:
    """The family file of a model_type.

    Raises:
        ConfigError: there is none; the message names the file to add.
    """
    module = None if model_type.startswith("_") else discover.find("edgeformer.models", model_type)
    if module is None or not hasattr(module, "spec"):
        raise ConfigError(
            f"model_type {model_type!r} is not known: there is no models/{model_type}.py (and no entry point of that name"
            f" in the group 'edgeformer.models'). Known: {', '.join(discover.names('edgeformer.models'))}."
            " CONTRIBUTING.md shows how to add a family in one file"
        )
    return module


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
    revision: str | None = None,
) -> LoadedModel:
    """Read a spec, and bind its weights without reading a tensor.

    Args:
        model: folder, GGUF file, spec file, named spec or hub id (see the module docstring).
        weights: a safetensors file or folder for the spec, instead of the model's own.
        names: canonical tensor pattern -> name in your own state dict (`{i}` is the layer's number); names absent from
            the map are looked up as they are.
        allow_unread_config: go on when config.json has keys nobody understands; `notes` then lists them.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelNotFound, ConfigError, SpecError, CheckpointError: see their docstrings.
    """
    path, name = Path(model), str(model)
    if not path.exists() and "+" in name and is_adapter(adapter := Path(name.rpartition("+")[2])):
        return _adapted(name.rpartition("+")[0], adapter, name, allow_unread_config, revision)
    if path.is_dir() and is_adapter(path):
        return _adapted(base_of(path), path, name, allow_unread_config, revision)
    if path.is_file() and path.suffix == ".gguf":
        loaded = _from_gguf(path.resolve(), name, allow_unread_config)
    elif path.is_file():
        loaded = _from_file(path, name, allow_unread_config)
    elif path.is_dir() and (file := gguf_in(path)) is not None:
        loaded = replace(_from_gguf(file.resolve(), name, allow_unread_config), folder=path.resolve())
    elif path.is_dir():
        loaded = _from_folder(path.resolve(), name, allow_unread_config, skip_weights=weights is not None)
    elif name in (known := named_specs()):
        loaded = replace(_from_file(known[name], name, allow_unread_config), folder=None)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = _download(name, revision)
        loaded = _from_folder(folder, name, allow_unread_config, skip_weights=weights is not None)
    else:
        near = difflib.get_close_matches(name.lower(), known, 5, 0.5)
        raise ModelNotFound(
            f"{name!r} is neither a folder, a spec file, a hub id (owner/name) nor a named spec"
            + (f"; near are {', '.join(near)}" if near else "")
            + ". `edgeformer named` lists all named specs"
        )
    if weights is None:
        return loaded
    source = Path(weights)
    if not source.exists():
        raise CheckpointError(f"{source} does not exist")
    stored = read_checkpoint(source) if source.is_dir() else read_header(source)
    bound, notes = bind(loaded.spec, stored, names or {}, where=str(source))
    return replace(loaded, weights=bound, notes=loaded.notes + notes)


def _adapted(base: str, adapter: Path, name: str, allow_unread: bool, revision: str | None) -> LoadedModel:
    """A base model with a LoRA adapter merged."""
    folder = Path(base)
    if not folder.is_dir():
        if base.count("/") != 1 or base.startswith((".", "/", "~")):
            raise ModelNotFound(
                f"the adapter {adapter} was trained on {base!r}, which is no folder here; give the model as BASE+{adapter}"
            )
        folder = _download(base, revision)
    return _from_folder(folder.resolve(), name, allow_unread, skip_weights=False, adapter=adapter)


def _from_file(path: Path, name: str, allow_unread: bool) -> LoadedModel:
    data = read_json(path)
    if isinstance(data, dict) and "kind" in data:
        return LoadedModel(_model(data, path), None, name)
    if not isinstance(data, dict):
        raise SpecError(f"{path} is neither a spec nor a Hugging Face config: it holds no object")
    spec, notes = _read_config(HfConfig(data, str(path)), allow_unread)
    return LoadedModel(spec, None, name, config=data, notes=notes)


def _from_gguf(file: Path, name: str, allow_unread: bool) -> LoadedModel:
    config, stored, arch, notes = read_gguf(file, allow_unread)
    reader = HfConfig(config, str(file), stored)
    spec, more = _read_config(reader, allow_unread)
    weights, left = bind(spec, stored, arch.NAMES, where=str(file))
    # what lies beside it is its own only in a folder made for it
    folder = file.parent if gguf_in(file.parent) == file else None
    quantization = _quantization_of(file.parent, file.name)
    return LoadedModel(spec, weights, name, folder, config, notes + more + left, quantization)


def _model(data: dict, path: Path) -> Model:
    spec = from_json(data)
    if not isinstance(spec, Model):
        raise SpecError(f"{path} describes a {spec.kind}, not a whole model")
    return spec


def _read_config(config: HfConfig, allow_unread: bool) -> tuple[Model, list[str]]:
    module = family(config.model_type)
    try:
        spec = module.spec(config)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise ConfigError(f"{config.where} has a value that models/{config.model_type}.py can't read: {e}") from e
    unread = config.done(allow_unread)
    return spec, [f"config keys not understood and skipped: {', '.join(unread)}"] if unread else []


def _from_folder(
    folder: Path, name: str, allow_unread: bool, skip_weights: bool, adapter: Path | None = None
) -> LoadedModel:
    want_weights = not skip_weights and has_weights(folder)
    if adapter is not None and not (want_weights and (folder / "config.json").exists()):
        raise CheckpointError(f"an adapter is merged into a Hugging Face folder with weights; {folder} is none")
    if (file := folder / "spec.json").exists():
        spec, notes = _model(read_json(file), file), []
        config, quantization = config_beside(file)
        config = config if config and discover.find("edgeformer.models", str(config.get("model_type"))) else None
        names: NameMap = {}
        prefixes: tuple[str, ...] = ("",)
        ignored: Mapping[str, str] = {}
        tied: Mapping[str, str] = {}
        stored = stored_tensors(folder, quantization) if want_weights else None
        if stored and holds_onnx(folder):  # a graph has constants of its own
            stored = {name: t for name, t in stored.items() if name in tensors(spec)}
    elif (file := folder / "config.json").exists():
        config, quantization = split_quantization(read_json(file))
        stored = _renamed(stored_tensors(folder, quantization), config) if want_weights else None
        reader = HfConfig(config, str(file), stored)
        module = family(reader.model_type)
        spec, notes = _read_config(reader, allow_unread)
        names = name_map(module, spec)
        if stored and is_mlx(folder):
            names = getattr(module, "MLX_NAMES", names)
        prefixes = getattr(module, "PREFIXES", ("",))
        ignored, tied = getattr(module, "IGNORED", {}), getattr(module, "TIED", {})
        if adapter is not None and stored is not None:
            turned = [p.name for p in names.values() if isinstance(p, Part) and p.transposed]
            stored = merged(stored, adapter, prefixes, turned)
            notes = [*notes, f"the adapter {adapter} is merged"]
    else:
        raise ModelNotFound(f"{folder} holds neither a config.json (Hugging Face) nor a spec.json (edgeformer)")
    spec = _with_pooling(spec, folder)
    weights = None
    if stored is not None:
        where = str(folder)
        weights, left = bind(spec, stored, names, prefixes=prefixes, ignored=ignored, tied=tied, where=where)
        notes = notes + left
    return LoadedModel(spec, weights, name, folder, config, notes, _quantization_of(folder))


def _quantization_of(folder: Path, file: str | None = None) -> dict | None:
    """What an artefact's manifest says about how its weights were quantized; nothing if `file` is none of its files."""
    data = manifest_of(folder)
    return data.get("quantization") if file is None or file in data.get("files", {}) else None


def _renamed(stored: Mapping[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    """The stored tensors under today's names, by the family's `RENAMED`."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    rules = getattr(family(kind), "RENAMED", {}) if isinstance(kind, str) else {}
    out = {}
    for name, tensor in stored.items():
        for pattern, new in rules.items():
            name = re.sub(pattern, new, name)
        out[name] = tensor
    return out


def _with_pooling(spec: Model, folder: Path) -> Model:
    """An encoder with the pooling that a sentence-transformers folder declares in modules.json."""
    from edgeformer.layers.encoder import Encoder
    from edgeformer.layers.pooling import Pooling

    if not isinstance(spec, Encoder) or spec.pooling is not None or not (folder / "modules.json").exists():
        return spec
    modules = read_json(folder / "modules.json")
    try:
        kinds = {m["type"].rsplit(".", 1)[-1]: m["path"] for m in modules}
    except (TypeError, KeyError, AttributeError) as e:
        raise ConfigError(f"{folder / 'modules.json'} is no list of sentence-transformers modules") from e
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ConfigError(f"{folder / 'modules.json'}: modules not supported: {', '.join(sorted(unknown))}")
    if "Pooling" not in kinds:
        return spec
    settings = read_json(folder / kinds["Pooling"] / "config.json")
    on = sorted(k for k, v in settings.items() if k.startswith("pooling_mode_") and v is True)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(on) != 1 or on[0] not in modes:
        raise ConfigError(f"{folder}: pooling {', '.join(on)} is not supported; {' or '.join(modes)} alone is")
    return replace(spec, pooling=Pooling(mode=modes[on[0]], normalize="Normalize" in kinds))


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", *TOKENIZER_FILES, "1_Pooling/*"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as e:
        raise ModelNotFound(
            f"{hub_id!r} is no local folder or file, is not in the Hugging Face cache, and the hub can't be reached"
            " (offline?). Connect once to download it, or give a folder"
        ) from e
    except (HfHubHTTPError, OSError, ValueError) as e:
        raise ModelNotFound(
            f"{hub_id!r} is no local folder or file, and the hub answers: {str(e).splitlines()[0]}"
        ) from e


def save(spec: Model, state: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """Write an edgeformer checkpoint: `spec.json` and `model.safetensors` with canonical names.

    Args:
        spec: the model.
        state: canonical name -> torch tensor (a `state_dict()`, also of a compiled or wrapped module), MLX or numpy array.
        folder: made if needed; its two files are replaced only when both are complete.

    Raises:
        CheckpointError: names or shapes are not the spec's; nothing is written.
    """
    folder = Path(folder)
    state = {re.sub(r"^(module\.)+|_orig_mod\.", "", name): tensor for name, tensor in state.items()}
    wanted, given = tensors(spec), {name: tuple(x.shape) for name, x in state.items()}
    if wrong := sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n)):
        lines = [f"{n}: the spec has {wanted.get(n, 'none')}, the state {given.get(n, 'none')}" for n in wrong[:12]]
        raise CheckpointError(
            f"the state does not fit the spec, {len(wrong)} tensors differ:\n    " + "\n    ".join(lines)
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    if any(hasattr(x, "detach") for x in state.values()):
        import torch
        from safetensors.torch import save_file

        save_file({k: torch.as_tensor(v).detach().contiguous() for k, v in state.items()}, str(partial))
    else:
        from safetensors.numpy import save_file as save_numpy

        save_numpy({name: as_numpy(x) for name, x in state.items()}, str(partial))
    (folder / "spec.json.partial").write_text(json.dumps(to_json(spec), indent=1))
    os.replace(partial, folder / "model.safetensors")
    os.replace(folder / "spec.json.partial", folder / "spec.json")
    return folder


def as_numpy(x: Any) -> np.ndarray:
    """A numpy or MLX array as numpy's; MLX's bfloat16 has no buffer that numpy knows."""
    if str(getattr(x, "dtype", "")) == "mlx.core.bfloat16":
        import mlx.core as mx

        return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)


__all__ = [
    "TOKENIZER_FILES",
    "LoadedModel",
    "as_numpy",
    "family",
    "load",
    "named_specs",
    "save",
]
