"""Plans the rows of a measurement: every runtime that supports the artefact or the checkpoint, or the requested ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import Manifest
from edgeformer.inference.lookup import compared, get, require
from edgeformer.inference.runtime import FORMATS, Options, Runtime
from edgeformer.measure.row import Plan
from edgeformer.spec import Model
from edgeformer.verification.parity import rounds_to_int8
from edgeformer.weights.costs import parameters

SLOW_REFERENCE = 50_000_000
"""Above this many parameters, slow runtimes (seconds per token) are left out unless requested."""


@dataclass(frozen=True)
class NoRow:
    """A runtime that gets no row, and the reason."""

    runtime: str
    reason: str

    def __str__(self) -> str:
        return f"no row for {self.runtime}: {self.reason}"


def artefact_plans(
    source: str, manifest: Manifest, spec: Model, chosen: list[str] | None
) -> tuple[list[Plan], list[NoRow]]:
    """Plans for an artefact's rows, and notes on the runtimes that get none."""
    kind = manifest.get("format", "onnx")
    found, notes = fitting(chosen, kind, spec, manifest)
    compute = "int8" if rounds_to_int8(manifest) else manifest["compute"]
    plans = [Plan(n, source, kind, manifest["precision"], n, timed=get(n)[0].timed, compute=compute) for n in found]
    return plans, notes


def checkpoint_plans(
    model: str, loaded: LoadedModel, chosen: list[str] | None, *, load_options: dict[str, Any] | None = None
) -> tuple[list[Plan], list[NoRow]]:
    """Plans for a checkpoint's fp32 rows, on runtimes that run checkpoints directly; and notes on those that get none."""
    found, notes = fitting(chosen, "checkpoint", loaded.spec, loaded)
    plans = []
    for name in found:
        runtime, _ = get(name)
        # a server's compute dtype is unknown, and its answers are text: use our widest tolerance
        compute = "bf16" if runtime.served else "fp32"
        options = load_options or {}
        plans.append(
            Plan(name, model, "checkpoint", "fp32", name, runtime.ranked, load_options=options, compute=compute)
        )
    return plans, notes


def label(plans: list[Plan]) -> list[Plan]:
    """The same plans with unique labels: the source is added where one runtime runs several sources in one precision."""
    sources: dict[tuple[str, str], set[str]] = {}
    for plan in plans:
        sources.setdefault((plan.runtime, plan.precision), set()).add(plan.source)
    names = _short_names({s for several in sources.values() if len(several) > 1 for s in several})
    return [
        replace(p, label=f"{p.runtime} ({names[p.source]})" if len(sources[p.runtime, p.precision]) > 1 else p.runtime)
        for p in plans
    ]


def _short_names(sources: set[str]) -> dict[str, str]:
    """Each path's trailing components, as many as make the names unique."""
    for depth in range(1, 20):
        names = {s: "/".join(Path(s).parts[-depth:]) for s in sources}
        if len(set(names.values())) == len(names):
            return names
    return {s: s for s in sources}


def too_slow(runtime: Runtime, spec: Model) -> bool:
    """Whether a runtime is left out of comparisons of models of this size unless requested."""
    return runtime.slow and parameters(spec) > SLOW_REFERENCE


def fitting(
    chosen: list[str] | None, opens: str, spec: Model, source: Manifest | LoadedModel
) -> tuple[list[str], list[NoRow]]:
    """Names of the runtimes, chosen or installed, that run a source; and notes on those that don't.

    opens: the source's format; source: an artefact's manifest, or the checkpoint.
    """
    found: list[str] = []
    notes: list[NoRow] = []
    for name in dict.fromkeys(chosen) if chosen is not None else compared(spec):
        runtime, variant = get(name) if chosen is None else require(name)
        if chosen is None and (not runtime.ranked or runtime.served):
            continue
        reason = None
        if not runtime.takes(opens):
            if chosen is None:
                continue
            reason = f"it opens {FORMATS[runtime.opens]}, this is {FORMATS[opens]}"
        elif chosen is None and too_slow(runtime, spec):
            reason = f"too slow for a model of this size; --runtimes {name} includes it anyway"
        reason = reason or runtime.unavailable() or runtime.refuses(spec, Options(variant=variant))
        if reason is None:
            checkpoint = isinstance(source, LoadedModel)
            reason = runtime.declines_checkpoint(source) if checkpoint else runtime.declines(source, variant)
        if reason is None:
            found.append(name)
        else:
            notes.append(NoRow(name, reason))
    return found, notes
