"""Which token ids begin, end and pad, by a model folder's configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.models._config import read_json


def special_ids(folder: Path | None, config: dict | None = None) -> dict[str, Any]:
    """The ids of `bos`, `eos` (an int or a list) and `pad`, from generation_config.json, else the config; None if unknown.

    Raises:
        ConfigError: one of the files is no JSON object.
    """
    ids: dict[str, Any] = dict.fromkeys(("bos", "eos", "pad"))
    sources = [config or {}]
    for name in ("config.json", "generation_config.json"):
        if folder is not None and (file := folder / name).exists():
            sources.append(read_json(file))
            if not isinstance(sources[-1], dict):
                raise ConfigError(f"{file} holds no JSON object")
    for data in sources:
        ids |= {k: data[f"{k}_token_id"] for k in ids if data.get(f"{k}_token_id") is not None}
    return ids


def decoder_start(folder: Path | None) -> int:
    """The id that an encoder–decoder model begins to write with.

    Raises:
        ConfigError: no config says it.
    """
    found = None
    for name in ("config.json", "generation_config.json"):
        if folder is not None and (file := folder / name).exists():
            data = read_json(file)
            found = data.get("decoder_start_token_id", found)
            if found is None and data.get("model_type") == "t5":
                found = data.get("pad_token_id", 0)
    if not isinstance(found, int):
        raise ConfigError(f"{folder} has no decoder_start_token_id, so it isn't known how to begin to write")
    return found
