"""Convert PyTorch's pickles to safetensors, with torch's weights-only loader, which builds tensors and runs no code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeformer.checkpoint.bundle import writing
from edgeformer.checkpoint.fairseq import is_fairseq, roberta
from edgeformer.errors import CheckpointError, RuntimeUnavailable
from edgeformer.weights.safetensors_file import shards
from edgeformer.weights.safetensors_writer import NAMES, Group, write_shards

if TYPE_CHECKING:
    from torch import Tensor

PATTERNS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt")
_WRAPPERS = ("state_dict", "model", "module")
_TRAINING = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scaler.pt")
Progress = Callable[[int, int], None]


def convert(
    model: str | os.PathLike, output: str | os.PathLike, *, force: bool = False, progress: Progress | None = None
) -> Path:
    """Write a checkpoint folder's pickled weights as safetensors, under their own names, with all its other files.

    Tensors that share memory are written once per name. Files are memory-mapped: one tensor is copied at a time. A fairseq
    RoBERTa (one file, with its settings) gets transformers' names and a config.json.

    Args:
        model: a folder with `pytorch_model.bin` (or its shards), or one file.
        output: folder to write; it appears when complete.
        force: replace an existing folder.
        progress: called with (bytes done, total bytes).

    Raises:
        CheckpointError: nothing to convert, a file that is not a plain state dict of tensors, or a dtype that safetensors lacks.
        RuntimeUnavailable: torch isn't installed.
    """
    try:
        import torch
    except ImportError as e:
        raise RuntimeUnavailable('reading .bin files needs torch; pip install "edgeformer[torch]"') from e
    source = Path(model)
    if not source.exists():
        raise CheckpointError(f"{source} does not exist")
    files = pickles(source)
    groups: list[Group] = []
    seen: dict[str, Path] = {}
    config: dict[str, Any] | None = None
    for file in files:
        tensors, told = _state(torch, file)
        config = told or config
        for name, tensor in tensors.items():
            if name in seen:
                raise CheckpointError(
                    f"{name} is in {seen[name].name} and in {file.name}; these are not shards of one model"
                )
            seen[name] = file
            groups.append(_group(torch, file, name, tensor))
    with writing(Path(output), force=force, keep=[source]) as folder:
        write_shards(folder, groups, {"format": "pt"}, progress)
        if source.is_dir():
            for beside in sorted(source.iterdir()):
                if beside not in files and not beside.name.startswith(".") and not _weights(beside):
                    (shutil.copytree if beside.is_dir() else shutil.copyfile)(beside, folder / beside.name)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return Path(output)


def _weights(file: Path) -> bool:
    return file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot") or file.name.endswith(
        ".bin.index.json"
    )


def pickles(source: Path) -> list[Path]:
    """The pickled weight files of a folder, following the index of a sharded checkpoint; or the file itself.

    Raises:
        CheckpointError: there are none, or shards are missing.
    """
    if source.is_file():
        return [source]
    index = source / "pytorch_model.bin.index.json"
    if (source / "pytorch_model.bin").exists():
        return [source / "pytorch_model.bin"]
    if index.exists():
        return shards(index)
    found = sorted(f for p in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in source.glob(p) if f.name not in _TRAINING)
    if not found:
        raise CheckpointError(f"{source} holds no pickled weights ({', '.join(PATTERNS)}); there is nothing to convert")
    return found


def _state(torch: ModuleType, file: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The tensors of a file, memory-mapped where its format allows it; and the config, if the file holds one."""
    state: object = None
    for options in ({"mmap": True}, {}):  # files from before torch 1.6 can't be mapped
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):  # fairseq's settings: plain data
                state = torch.load(file, map_location="cpu", weights_only=True, **options)
            break
        except Exception as e:  # torch raises several exception types, among them pickle's
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            if not options:
                raise CheckpointError(
                    f"{file} can't be read by torch's weights-only loader, which accepts only tensors and runs no code: {reason}"
                ) from e
    if is_fairseq(state):
        return roberta(state, str(file))
    for key in _WRAPPERS:
        if (
            isinstance(state, dict)
            and isinstance(state.get(key), dict)
            and not isinstance(next(iter(state)), torch.Tensor)
        ):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file} holds no state dict (a dict of tensors)")
    if strange := [str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]:
        raise CheckpointError(f"{file} holds no plain state dict: {', '.join(strange[:4])} are not tensors")
    return {str(name): tensor for name, tensor in state.items()}, None


def _group(torch: ModuleType, file: Path, name: str, tensor: Tensor) -> Group:
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = {np.dtype(kind).name: np.dtype(kind) for kind in NAMES}
    if dtype not in plain:
        raise CheckpointError(
            f"{file}: {name} has dtype {dtype}, which edgeformer's safetensors writer doesn't support"
        )

    def make() -> list[np.ndarray]:
        x = tensor.detach().contiguous()
        if x.dtype == torch.bfloat16:
            return [x.view(torch.uint16).numpy().view(plain[dtype])]
        return [x.numpy()]

    return Group({name: (plain[dtype], tuple(tensor.shape))}, make)
