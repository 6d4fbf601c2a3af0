"""Which rows a measurement has: every runtime that can take the artefact or the checkpoint, or those asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeformer.inspection import parameters
from edgeformer.measure.row import Plan
from edgeformer.parity import rounds_to_int8
from edgeformer.runtimes._protocol import FORMATS, Options, Runtime, get, names, require
from edgeformer.spec import Model

SLOW_REFERENCE = 50_000_000
"""Above this many parameters slow runtimes are left out unless they are asked for: they take seconds per token."""


def artefact_plans(
    source: str, manifest: dict[str, Any], spec: Model, chosen: list[str] | None
) -> tuple[list[Plan], list[str]]:
    """The rows of an artefact, and notes on the runtimes that get none."""
    kind = manifest.get("format", "onnx")
    found, notes = _runtimes(chosen, kind, spec)
    compute = "int8" if rounds_to_int8(manifest) else manifest["compute"]
    plans = [Plan(n, source, kind, manifest["precision"], n, compute=compute) for n in found]
    return plans, notes


def checkpoint_plans(
    model: str, spec: Model, chosen: list[str] | None, *, load_options: dict[str, Any] | None = None
) -> tuple[list[Plan], list[str]]:
    """The rows of a checkpoint, in fp32, by the runtimes that build the spec themselves; and notes."""
    found, notes = _runtimes(chosen, "checkpoint", spec)
    plans = [Plan(n, model, "checkpoint", "fp32", n, get(n)[0].ranked, load_options=load_options or {}) for n in found]
    return plans, notes


def label(plans: list[Plan]) -> list[Plan]:
    """The same plans with labels that tell them apart: the source is added where one runtime runs several."""
    sources: dict[str, set[str]] = {}
    for plan in plans:
        sources.setdefault(plan.runtime, set()).add(plan.source)
    names = _short_names({s for several in sources.values() if len(several) > 1 for s in several})
    return [
        replace(p, label=f"{p.runtime} ({names[p.source]})" if len(sources[p.runtime]) > 1 else p.runtime)
        for p in plans
    ]


def _short_names(sources: set[str]) -> dict[str, str]:
    """Each path's last parts, as many as it takes to tell them apart."""
    for depth in range(1, 20):
        names = {s: "/".join(Path(s).parts[-depth:]) for s in sources}
        if len(set(names.values())) == len(names):
            return names
    return {s: s for s in sources}


def fitting_runtimes(spec: Model) -> list[Runtime]:
    """Every runtime that a comparison without further wishes has rows of."""
    found = [get(name)[0] for name in names()]
    return [
        r
        for r in found
        if r.ranked and r.unavailable() is None and r.refuses(spec, Options()) is None and not _too_slow(r, spec)
    ]


def _too_slow(runtime: Runtime, spec: Model) -> bool:
    return runtime.slow and parameters(spec) > SLOW_REFERENCE


def _runtimes(chosen: list[str] | None, opens: str, spec: Model) -> tuple[list[str], list[str]]:
    found, notes = [], []
    for name in dict.fromkeys(chosen) if chosen is not None else names():
        runtime, _ = get(name) if chosen is None else require(name)
        if chosen is None and not runtime.ranked:
            continue
        reason = None
        if not runtime.takes(opens):
            if chosen is None:
                continue
            reason = f"it opens {FORMATS[runtime.opens]}, this is {FORMATS[opens]}"
        elif chosen is None and _too_slow(runtime, spec):
            reason = f"it is slow here for a model of this size; --runtime {name} asks for it"
        reason = reason or runtime.unavailable() or runtime.refuses(spec, Options())
        if reason is None:
            found.append(name)
        else:
            notes.append(f"no row for {name}: {reason}")
    return found, notes
