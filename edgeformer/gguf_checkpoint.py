"""A GGUF file as what a family file reads: the Hugging Face config that says the same, and its tensors."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from edgeformer import discover
from edgeformer.errors import CheckpointError, ConfigError
from edgeformer.gguf_archs._common import ROPE_FACTORS
from edgeformer.gguf_file import Reader
from edgeformer.safetensors_file import StoredTensor


def read_gguf(file: Path, allow_unread: bool) -> tuple[dict[str, Any], dict[str, StoredTensor], ModuleType, list[str]]:
    """The config, the tensors by GGUF name (rows in our order), the architecture's module, and notes.

    Raises:
        CheckpointError: no GGUF file, or tensors of types that can't be read (K-quants and their like).
        ConfigError: an architecture, or keys of it, that nobody understands.
    """
    reader = Reader(file)
    known = discover.names("edgeformer.gguf_archs")
    arch = discover.find("edgeformer.gguf_archs", reader.architecture) if reader.architecture in known else None
    if arch is None:
        raise ConfigError(f"{file} is of the architecture {reader.architecture!r}; {', '.join(known)} can be read")
    config = arch.config(reader)
    unread = reader.unread()
    if unread and not allow_unread:
        raise ConfigError(
            f"{file} has keys that nobody understands: {', '.join(unread)}. They may change the model; --allow-unread-config"
            " goes on without them"
        )
    heads = config.get("num_attention_heads", 0), config.get("num_key_value_heads", 0)
    turned: dict[str, int] = {
        name.split(".")[-1]: count for name, count in zip(getattr(arch, "INTERLEAVED", ()), heads, strict=False)
    }
    stored = {}
    for name in reader.names():
        if name != ROPE_FACTORS:  # said by the config
            leaf = name.rsplit(".", 2)[-2].removeprefix("attn_") if name.count(".") > 1 else ""
            stored[name] = reader.tensor(name, turned.get(leaf, 0))
    if not stored:
        raise CheckpointError(f"{file} holds no tensors")
    notes = [f"GGUF keys not understood and skipped: {', '.join(unread)}"] if unread else []
    return config, stored, arch, notes


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds one and nothing else that says a model."""
    if any((folder / name).exists() for name in ("config.json", "spec.json")):
        return None
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None
