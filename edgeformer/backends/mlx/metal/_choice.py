"""Kernel selection for this machine: `edgeformer tune`'s measurements, stored per chip, MLX version and architecture."""

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
    """The chip and the MLX version for which a measurement is valid."""
    return f"{mx.device_info().get('device_name', 'unknown')}, mlx {version('mlx')}"


def file() -> Path:
    """The file of stored choices; EDGEFORMER_TUNING overrides its path."""
    given = os.environ.get("EDGEFORMER_TUNING")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgeformer")) / "metal-kernels.json"


def stored() -> dict[str, Any]:
    """All stored choices: machine -> subject -> measurement. Empty if the file can't be read."""
    try:
        data = json.loads(file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def subject(spec_digest: str, stored: Iterable[str], precision: str) -> str:
    """The key of a measurement: the architecture, the storage of its weights, and the compute precision."""
    kinds = sorted(kind for kind in stored if kind.startswith("AFFINE"))
    return " ".join([spec_digest, "+".join(kinds) or "plain", precision])


def prepare() -> None:
    """Create the folder of the stored choices; called before measuring, so that a failure costs no measurement.

    Raises:
        InputError: the folder can't be created.
    """
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"can't create {file().parent}: {e.strerror}; set EDGEFORMER_TUNING to another file") from e


def save(subject: str, measured: dict[str, Any]) -> Path:
    """Store a measurement for this machine, replacing an older one; the file is replaced atomically. Returns its path."""
    data, place = stored(), file()
    data.setdefault(machine(), {})[subject] = measured
    prepare()
    replace_file(place, (json.dumps(data, indent=1) + "\n").encode())
    return place


def choose(variant: str, subject: str) -> dict[str, metal.Kernel]:
    """The kernels of a variant: `kernels` all, `ops` none, otherwise those measured to be faster on this machine.

    Raises:
        RuntimeUnavailable: the variant is `kernels` and Metal is not available.
    """
    if variant == "kernels":
        if not mx.metal.is_available():
            raise RuntimeUnavailable(
                "the custom kernels need Metal (an Apple GPU); use the runtime mlx without :kernels"
            )
        return {name: metal.get(name) for name in metal.names()}
    if variant == "ops" or not mx.metal.is_available():
        return {}
    measured = stored().get(machine(), {}).get(subject, {})
    known = set(metal.names())
    return {name: metal.get(name) for name in measured.get("chosen", []) if name in known}
