"""One row of a comparison: what was run, every timing sample, memory use, and whether its outputs were verified."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeformer.measure.flags import Flag
from edgeformer.verification.verdict import NEAR_TIE, PASS, UNCHECKED


@dataclass(frozen=True)
class Shape:
    """A row's workload: `prompt` tokens of prefill after `depth` tokens already in the cache, then `gen` decode steps, for
    `batch` sequences at once, or for `concurrency` clients of a server. Encoders have no `gen` and no `depth`; an encoder–decoder
    model encodes the `prompt` and decodes its answer, so that its prefill is the encoder and the first decoder step.
    """

    prompt: int = 128
    gen: int = 64
    batch: int = 1
    depth: int = 0
    concurrency: int = 1

    def text(self) -> str:
        """Display form: `128+64`, `128+64 @512 ×8`, or `8 × 128` for encoders."""
        if not self.gen:
            return f"{self.batch} × {self.prompt}"
        text = f"{self.prompt}+{self.gen}" + (f" @{self.depth}" if self.depth else "")
        text += f" ×{self.batch}" if self.batch > 1 else ""
        return text + (f", {self.concurrency} clients" if self.concurrency > 1 else "")

    @property
    def capacity(self) -> int:
        """Tokens the KV cache must hold."""
        return self.depth + self.prompt + self.gen


@dataclass(frozen=True)
class Plan:
    """A row to run: `runtime` (`name` or `name:variant`) on `source`, an artefact's folder or a MODEL.

    `precision` is that of the weights, `compute` that of the arithmetic. `again` marks a row's twin, which runs the same again
    to measure the noise. `timed`: whether its time is a result.
    """

    runtime: str
    source: str
    opens: str
    precision: str
    label: str = ""
    ranked: bool = True
    load_options: dict[str, Any] = field(default_factory=dict)
    compute: str = "fp32"
    again: bool = False
    timed: bool = True


@dataclass
class Row:
    """A row's results. Times in nanoseconds, one list entry per round; `error` is the reason if there are none.

    `process` of a round is the index, from 0, of the worker process that ran it: a resumed run starts new ones. `measured` is
    when the last round ended, UTC; `served`: times were measured by a server's clients.
    """

    plan: Plan
    shape: Shape
    threads: int
    status: str = "ok"
    error: str | None = None
    verdict: str = UNCHECKED
    checks: list[dict[str, Any]] = field(default_factory=list)
    reference: str | None = None
    load_s: float | None = None
    first: dict[str, Any] | None = None
    discarded: list[dict[str, Any]] = field(default_factory=list)
    settled: bool | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)
    processes: int = 0
    measured: str | None = None
    served: bool = False

    @property
    def verified(self) -> bool:
        """Whether the row's outputs were compared with the reference and passed."""
        return self.status == "ok" and self.verdict in (PASS, NEAR_TIE)

    @property
    def ranked(self) -> bool:
        """Whether the row is ranked: verified, measured, from a ranked runtime whose time is a result, and not a twin."""
        mine = self.decode_medians_ns() if self.shape.gen else self.rounds
        return self.verified and bool(mine) and self.plan.ranked and self.plan.timed and not self.plan.again

    def prefill_ns(self) -> list[int]:
        """Every prefill (or encoder call) of every round."""
        return [t for r in self.rounds for t in r["prefill_ns"]]

    def decode_ns(self) -> list[int]:
        """Every decode step of every round."""
        return [t for r in self.rounds for t in r["decode_ns"]]

    def prefill_medians_ns(self) -> list[float]:
        """Each round's median prefill."""
        return [statistics.median(r["prefill_ns"]) for r in self.rounds if r["prefill_ns"]]

    def decode_medians_ns(self) -> list[float]:
        """Each round's median decode step; for servers the mean, since tokens may arrive in bursts."""
        return [
            statistics.median(r["decode_ns"]) if r.get("wall_ns") is None else statistics.mean(r["decode_ns"])
            for r in self.rounds
            if r["decode_ns"]
        ]

    def ranking_ns(self) -> list[float]:
        """The ranking metric, one sample per round: the decode step, or the call of an encoder."""
        return self.decode_medians_ns() if self.shape.gen else self.prefill_medians_ns()

    def cpu_per_wall(self) -> float | None:
        """CPU seconds per second of wall time while measuring: roughly the number of busy threads."""
        if any(r["cpu_ns"] is None for r in self.rounds):
            return None  # another process did the work
        wall = sum(self.prefill_ns()) + sum(self.decode_ns())
        return sum(r["cpu_ns"] for r in self.rounds) / wall if wall else None


def quantile(samples: list[int], q: float) -> float:
    """The q-quantile by linear interpolation."""
    return float(np.quantile(samples, q))
