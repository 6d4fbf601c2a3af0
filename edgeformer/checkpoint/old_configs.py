"""Configs from before transformers 3, completed by what the tensors' names say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgeformer import discover
from edgeformer.models._family import family_of


def with_model_type(config: Any, stored: Collection[str] | None) -> tuple[Any, list[str]]:
    """A config without model_type, with that of the family whose own prefix the tensors' names have ("bert."); and a note."""
    if not isinstance(config, dict) or "model_type" in config or not stored:
        return config, []
    for name, module in discover.each("edgeformer.models"):
        with discover.sparing("edgeformer.models", name):
            found, own = family_of(module), f"{name}."  # prefixes such as "model." are those of many families
            if found is not None and own in found.prefixes and any(n.startswith(own) for n in stored):
                note = f"config.json has no model_type; {name} is taken from the names of the tensors"
                return {**config, "model_type": name}, [note]
    return config, []
