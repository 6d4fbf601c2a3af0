"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) as PEFT saves them, merged into a checkpoint's tensors as these are read.

`adapter_config.json` and `adapter_model.safetensors`, with `base_model.model.<module>.lora_A.weight` [r, inputs] and
`lora_B.weight` [outputs, r]; the merged weight is W + alpha / r · B A (alpha / √r with `use_rslora`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError, ConfigError
from edgeformer.files.json_file import read_json_file
from edgeformer.files.paths import inside
from edgeformer.files.patterns import bounded
from edgeformer.files.quoting import listed, shown
from edgeformer.weights.safetensors_file import StoredTensor, read_header

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HARMLESS = frozenset((  # how it was trained, or which modules it has, which the tensors show themselves
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "monteclora_config",
    "velora_config",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
))  # fmt: skip
_READ = frozenset(("peft_type", "r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out"))
_OFF: tuple[Any, ...] = (None, False, [], {}, "none")


@dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A base tensor plus an adapter's update, float32. `offset` and `nbytes` are the base's."""

    base: StoredTensor
    down: StoredTensor
    up: StoredTensor
    scale: float
    transposed: bool

    @property
    def raw(self) -> bool:
        """False: no file holds the merged values."""
        return False

    def parts(self) -> tuple[StoredTensor, ...]:
        return (*self.base.parts(), self.down, self.up)

    def read(self) -> np.ndarray:
        up, down = (t.read().astype(np.float32) for t in (self.up, self.down))
        added = (up @ down) * np.float32(self.scale)
        return self.base.read().astype(np.float32) + (added.T if self.transposed else added)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a model.

    A config.json beside it is a copy of the base's.

    Raises:
        CheckpointError: it holds both, so the choice is ambiguous.
    """
    if not (folder / CONFIG).exists():
        return False
    others = [f for pattern in ("*.safetensors", "*.bin", "*.gguf") for f in folder.glob(pattern)]
    own = [f.name for f in others if f.name.startswith(("model", "pytorch_model")) or f.suffix == ".gguf"]
    if own:
        raise CheckpointError(
            f"{folder} holds both a model ({own[0]}) and an adapter ({CONFIG}), so it is unclear whether the model is already"
            f" merged. Move the adapter's files away to use the model, or into a folder of their own and give {folder}+ADAPTER"
        )
    return True


def base_revision(folder: Path) -> str | None:
    """The revision of its base that an adapter was trained on, if it names one."""
    revision = _config(folder).get("revision")
    return revision if isinstance(revision, str) and revision not in ("", "main") else None


def base_of(folder: Path) -> str:
    """The MODEL that an adapter names as its base: a hub id, or a folder inside the adapter's.

    Raises:
        ConfigError: it names none, or a path elsewhere: a downloaded file may not choose which of the user's folders is read.
    """
    base = _config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{folder / CONFIG} has no base_model_name_or_path; give the model as BASE+{folder}")
    if (folder / base).is_dir() and not Path(base).is_absolute():
        return str(inside(folder, base, str(folder / CONFIG), ConfigError))
    if not _HUB_ID.fullmatch(base) or Path(base).exists():
        raise ConfigError(
            f"{folder / CONFIG} names a folder as its base ({base[:200]!r}), but an adapter may not choose which of your"
            f" folders is read; if that is the one, give the model as {base[:200]}+{folder}"
        )
    return base


def merged(
    stored: Mapping[str, StoredTensor], folder: Path, prefixes: Collection[str], turned: Collection[str]
) -> dict[str, StoredTensor]:
    """A checkpoint's tensors with an adapter merged.

    Args:
        stored: stored name -> tensor of the base.
        folder: the adapter's.
        prefixes: what stored names may start with.
        turned: patterns (`{i}` a layer's number) of weights that are stored as [inputs, outputs].

    Raises:
        ConfigError: the kind of adapter is not supported; the message names the setting.
        CheckpointError: its tensors don't fit the base.
    """
    config = _checked(folder)
    tensors = read_header(folder / WEIGHTS) if (folder / WEIGHTS).exists() else None
    if tensors is None:
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; save the adapter with safetensors")
    pairs: dict[str, dict[str, StoredTensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight", name)
        if found is None:
            strange.append(name)
            continue
        pairs.setdefault(found[1], {})[found[2]] = tensor
    if not tensors or strange:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds {len(strange)} tensors that are not LoRA pairs of linear maps: {listed(strange, 4)}"
            if strange
            else f"{folder / WEIGHTS} holds no tensors"
        )
    out = dict(stored)
    for module, pair in pairs.items():
        name = _place(module, stored, prefixes)
        if name is None or len(pair) != 2:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {module} has {' and '.join(f'lora_{k}' for k in sorted(pair))}, and the base"
                f" {'has no such weight' if name is None else 'has that weight'}; it was trained on another model, or truncated"
            )
        if any(len(t.shape) != 2 or 0 in t.shape for t in pair.values()):
            raise CheckpointError(
                f"{folder / WEIGHTS}: the LoRA pair of {module} must be matrices, got shapes {[t.shape for t in pair.values()]}"
            )
        lies_turned = re.sub(r"\.\d+\.", ".{i}.", name) in {p + t for p in prefixes for t in turned}
        out[name] = _merge(stored[name], pair, _scale(config, module, pair["A"].shape[0], folder), lies_turned, folder)
    return out


def _merge(base: StoredTensor, pair: dict[str, StoredTensor], scale: float, turned: bool, folder: Path) -> MergedTensor:
    shape = (pair["B"].shape[0], pair["A"].shape[1])
    if base.shape != (tuple(reversed(shape)) if turned else shape) or pair["A"].shape[0] != pair["B"].shape[1]:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {pair['A'].name} {list(pair['A'].shape)} and {pair['B'].name} {list(pair['B'].shape)} don't fit"
            f" {base.name} {list(base.shape)}"
        )
    return MergedTensor(
        base.name,
        base.file,
        base.offset,
        base.nbytes,
        "F32",
        base.shape,
        base,
        pair["A"],
        pair["B"],
        scale,
        turned,
        identity=base.identity,
    )


def _place(module: str, stored: Mapping[str, StoredTensor], prefixes: Collection[str]) -> str | None:
    """The stored name of a module's weight: classes and checkpoints differ in the prefix."""
    bare = next((module.removeprefix(p) for p in prefixes if p and module.startswith(p)), module)
    candidates = [f"{module}.weight", *(f"{p}{bare}.weight" for p in (*prefixes, ""))]
    return next((name for name in candidates if name in stored), None)


def _scale(config: dict[str, Any], module: str, rank: int, folder: Path) -> float:
    """alpha / r, or alpha / √r; both may differ from module to module.

    Raises:
        ConfigError: the rank is not the tensors', or a value is not a number.
    """
    said = _of_module(config, "rank_pattern", module, config.get("r", 8), folder)
    alpha = _of_module(config, "alpha_pattern", module, config.get("lora_alpha", 8), folder)
    if said != rank:
        raise ConfigError(f"{folder / CONFIG}: r of {module} is {said:g}, but its tensors have rank {rank}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: dict[str, Any], key: str, module: str, usual: object, folder: Path) -> float:
    """The value for a module: that of the first pattern that its name ends with, or the default."""
    patterns, value = config.get(key) or {}, usual
    try:
        for pattern, own in patterns.items():
            if bounded(rf"(.*\.)?({pattern})$", f"{key} in {folder / CONFIG}", ConfigError).fullmatch(module):
                value = own
                break
    except (AttributeError, TypeError) as e:
        raise ConfigError(f"{folder / CONFIG}: {key} can't be read: {e}") from e
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{folder / CONFIG}: {key.split('_')[0]} of {module} must be a number, got {shown(value)}")
    return float(value)


def _config(folder: Path) -> dict[str, Any]:
    data = read_json_file(folder / CONFIG, ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{folder / CONFIG} holds no JSON object")
    return data


def _checked(folder: Path) -> dict[str, Any]:
    config = _config(folder)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{folder / CONFIG}: peft_type {shown(config.get('peft_type'))} is not supported; LORA is")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in ("gaussian", "eva", "orthogonal"):
        raise ConfigError(
            f"{folder / CONFIG}: init_lora_weights = {shown(start)} also changed the base; convert the adapter to a plain LoRA"
            " with PEFT"
        )
    if not isinstance(config.get("use_rslora", False), bool):
        raise ConfigError(f"{folder / CONFIG}: use_rslora must be true or false, got {shown(config['use_rslora'])}")
    on = {k: v for k, v in config.items() if k not in _HARMLESS | _READ and v not in _OFF}
    if on:
        said = listed(f"{shown(k)[1:-1]} = {shown(v)}" for k, v in sorted(on.items()))
        raise ConfigError(f"{folder / CONFIG}: {said} is not supported; a plain LoRA of linear maps is")
    return config
