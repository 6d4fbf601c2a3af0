"""Which rows a measurement has: every runtime that can take the artefact or the checkpoint, or those asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeformer.inspection import parameters
from edgeformer.measure.row import Plan
from edgeformer.runtimes._protocol import Options, get, names, require
from edgeformer.spec import Model

SLOW_REFERENCE = 50_000_000
"""Above this many parameters the numpy runtime is left out unless it is asked for: it takes seconds per token."""


def artefact_plans(
    source: str, manifest: dict[str, Any], spec: Model, chosen: list[str] | None, *, many: bool = False
) -> tuple[list[Plan], list[str]]:
    """The rows of an ONNX artefact, and notes on the runtimes that get none. `many` adds the folder's name to labels."""
    suffix = f" ({Path(source).name})" if many else ""
    found, notes = _runtimes(chosen, "onnx", spec)
    return [Plan(name, source, "onnx", manifest["precision"], name + suffix) for name in found], notes


def checkpoint_plans(
    model: str, spec: Model, chosen: list[str] | None, *, load_options: dict[str, Any] | None = None
) -> tuple[list[Plan], list[str]]:
    """The rows of a checkpoint, in fp32, by the runtimes that build the spec themselves; and notes."""
    found, notes = _runtimes(chosen, "checkpoint", spec)
    if chosen is None and "numpy" in found and parameters(spec) > SLOW_REFERENCE:
        found.remove("numpy")
        notes.append("the numpy runtime is left out for a model of this size; --runtime numpy asks for it")
    plans = [Plan(n, model, "checkpoint", "fp32", n, get(n)[0].ranked, load_options=load_options or {}) for n in found]
    return plans, notes


def _runtimes(chosen: list[str] | None, opens: str, spec: Model) -> tuple[list[str], list[str]]:
    if chosen is not None:
        return [name for name in chosen if require(name)[0].opens == opens], []
    found, notes = [], []
    for name in names():
        runtime, _ = get(name)
        if runtime.opens != opens or not runtime.ranked:
            continue
        reason = runtime.unavailable() or runtime.refuses(spec, Options())
        if reason is None:
            found.append(name)
        else:
            notes.append(f"no row for {name}: {reason}")
    return found, notes
