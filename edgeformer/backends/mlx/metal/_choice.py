"""Which kernels to use on this machine: what `edgeformer tune` measured, kept per chip, MLX version and architecture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import platformdirs

from edgeformer.backends.mlx import metal
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.files.atomic import replace_file


def machine() -> str:
    """The chip and the versions that a measurement holds for."""
    return f"{mx.device_info().get('device_name', 'unknown')}, mlx {version('mlx')}"


def file() -> Path:
    """Where choices are kept; EDGEFORMER_TUNING names another file."""
    given = os.environ.get("EDGEFORMER_TUNING")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgeformer")) / "metal-kernels.json"


def stored() -> dict[str, Any]:
    """Every choice there is: machine -> subject -> what was measured. Empty where nothing can be read."""
    try:
        data = json.loads(file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def subject(spec_digest: str, stored: Iterable[str], precision: str) -> str:
    """What a measurement holds for: an architecture, how its weights are stored, and what is computed in."""
    kinds = sorted(kind for kind in stored if kind.startswith("AFFINE"))
    return " ".join([spec_digest, "+".join(kinds) or "plain", precision])


def prepare() -> None:
    """Make the folder that choices are kept in: before measuring, not after.

    Raises:
        InputError: it can't be made.
    """
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"can't make {file().parent}: {e.strerror}; set EDGEFORMER_TUNING to another file") from e


def save(subject: str, measured: dict[str, Any]) -> Path:
    """Keep a measurement for this machine, replacing an older one; the file is swapped in one step."""
    data, place = stored(), file()
    data.setdefault(machine(), {})[subject] = measured
    prepare()
    replace_file(place, (json.dumps(data, indent=1) + "\n").encode())
    return place


def choose(variant: str, subject: str) -> dict[str, metal.Kernel]:
    """The kernels for a variant: `kernels` all, `ops` none, otherwise those that were measured to be faster here.

    Raises:
        RuntimeUnavailable: `kernels` without Metal.
    """
    if variant == "kernels":
        if not mx.metal.is_available():
            raise RuntimeUnavailable(
                "the custom kernels need Metal: an Apple GPU; use the runtime mlx without :kernels"
            )
        return {name: metal.get(name) for name in metal.names()}
    if variant == "ops" or not mx.metal.is_available():
        return {}
    measured = stored().get(machine(), {}).get(subject, {})
    known = set(metal.names())
    return {name: metal.get(name) for name in measured.get("chosen", []) if name in known}
