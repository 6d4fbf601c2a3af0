"""Read a GGUF file as input for a family file: the equivalent Hugging Face config, and the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeformer import discover
from edgeformer.checkpoint.gguf_archs._common import Architecture
from edgeformer.checkpoint.gguf_archs._rope import FACTORS
from edgeformer.errors import CheckpointError, ConfigError
from edgeformer.layers.pooling import Pooling
from edgeformer.weights.gguf_file import Reader, parts_of
from edgeformer.weights.safetensors_file import StoredTensor

TOKENIZER = "tokenizer."


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds: the config, the tensors by GGUF name (rows in edgeformer's order), the architecture,
    the tokenizer's metadata without `tokenizer.`, the files (several for a split model), an encoder's pooling, and notes."""

    config: dict[str, Any]
    stored: dict[str, StoredTensor]
    architecture: Architecture
    tokenizer: dict[str, Any]
    files: list[Path]
    pooling: Pooling | None
    notes: list[str]


def read_gguf(file: Path, allow_unread: bool) -> GgufModel:
    """Read a GGUF file; any part of a split model stands for all of it.

    Raises:
        CheckpointError: not a GGUF file, a part of a split model is missing, or a tensor type is not supported
            (integers, and what the package gguf can't dequantize).
        ConfigError: the architecture, or one of its keys, is not supported.
    """
    reader = Reader(file)
    known = discover.names("edgeformer.checkpoint.gguf_archs")
    name = reader.architecture.replace("-", "_")  # command-r
    module = discover.find("edgeformer.checkpoint.gguf_archs", name) if name in known else None
    if module is None:
        raise ConfigError(
            f"{file} has llama.cpp's architecture {reader.architecture!r}, which edgeformer doesn't read from GGUF yet;"
            f" supported are {', '.join(known)}"
        )
    arch = discover.declared(module, "ARCHITECTURE", Architecture)
    config = arch.config(reader)
    reader.ignore("tensor_data_layout")  # the program that wrote the file; llama.cpp reads it nowhere
    unread = reader.unread()
    if unread and not allow_unread:
        raise ConfigError(
            f"{file} has keys that edgeformer doesn't support: {', '.join(unread)}. They may change the model;"
            " --allow-unread-config ignores them"
        )
    heads = config.get("num_attention_heads", 0), config.get("num_key_value_heads", 0)
    turned: dict[str, int] = {name.split(".")[-1]: count for name, count in zip(arch.interleaved, heads, strict=False)}
    stored = {}
    for name in reader.names():
        if name not in FACTORS:  # already in the config
            leaf = name.rsplit(".", 2)[-2].removeprefix("attn_") if name.count(".") > 1 else ""
            stored[name] = reader.tensor(name, turned.get(leaf, 0))
    if not stored:
        raise CheckpointError(f"{file} holds no tensors")
    notes = [f"unsupported GGUF keys ignored: {', '.join(unread)}"] if unread else []
    if others := reader.strangers():
        notes.append(f"unused GGUF metadata: {', '.join(others)}")
    notes += reader.notes + arch.remarks(reader)
    return GgufModel(config, stored, arch, reader.below(TOKENIZER), reader.files, arch.pooling(reader), notes)


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no other model; the first part of a split model.

    Raises:
        CheckpointError: there are several, so the choice is ambiguous.
    """
    found = ggufs_in(folder)
    if len(found) > 1:
        names = ", ".join(f.name for f in found[:6])
        raise CheckpointError(f"{folder} holds several GGUF files ({names}); give one of them as MODEL")
    return found[0] if found else None


def ggufs_in(folder: Path) -> list[Path]:
    """The GGUF models of a folder that holds no model in another format; the first part of a split model.

    A config.json beside them is the original's: GGUF's own metadata takes precedence.
    """
    if any(next(folder.glob(pattern), None) for pattern in ("spec.json", "*.safetensors", "*.bin")):
        return []
    files = sorted(f for f in folder.glob("*.gguf") if not f.name.startswith("mmproj"))
    return list(dict.fromkeys(parts_of(f)[0] for f in files))
