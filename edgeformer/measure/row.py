"""One row of a comparison: what was run, every sample, what memory it took, and whether its answers were right."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeformer.measure.flags import Flag
from edgeformer.verification.verdict import NEAR_TIE, PASS, UNCHECKED


@dataclass(frozen=True)
class Shape:
    """What is asked of a row: `prompt` tokens of prefill after `depth` tokens that are in the cache already, then `gen` decode
    steps, for `batch` sequences at once; of servers, by `concurrency` clients at once. Encoders have no `gen` and no `depth`.
    """

    prompt: int = 128
    gen: int = 64
    batch: int = 1
    depth: int = 0
    concurrency: int = 1

    def text(self) -> str:
        """For people: `128+64`, `128+64 @512 ×8`, `8 × 128` of an encoder."""
        if not self.gen:
            return f"{self.batch} × {self.prompt}"
        text = f"{self.prompt}+{self.gen}" + (f" @{self.depth}" if self.depth else "")
        text += f" ×{self.batch}" if self.batch > 1 else ""
        return text + (f", {self.concurrency} clients" if self.concurrency > 1 else "")

    @property
    def capacity(self) -> int:
        """Tokens that a cache has to hold."""
        return self.depth + self.prompt + self.gen


@dataclass(frozen=True)
class Plan:
    """A row to run: `runtime` (`name` or `name:variant`) on `source`, an artefact's folder or a MODEL.

    `precision` is of the weights, `compute` of the arithmetic. `again` marks the second row of the same: the two tell how much
    of a difference is noise.
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


@dataclass
class Row:
    """Results. Times in nanoseconds, one list entry per round; `error` says why there are none.

    `process` of a round counts the processes that made the row, from 0: a resumed run starts new ones. `measured` is when the
    last round ended, UTC; `served` says that a server's client measured.
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
        """Whether the row's answers were compared and are right."""
        return self.status == "ok" and self.verdict in (PASS, NEAR_TIE)

    @property
    def ranked(self) -> bool:
        """Whether it takes part in the ranking: verified, measured, a runtime's, and not the second row of the same."""
        mine = self.decode_medians_ns() if self.shape.gen else self.rounds
        return self.verified and bool(mine) and self.plan.ranked and not self.plan.again

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
        """Each round's median decode step; of a server the mean, since its tokens may arrive in bursts."""
        return [
            statistics.median(r["decode_ns"]) if r.get("wall_ns") is None else statistics.mean(r["decode_ns"])
            for r in self.rounds
            if r["decode_ns"]
        ]

    def ranking_ns(self) -> list[float]:
        """What rows are ranked by, a sample per round: the decode step, of encoders the call."""
        return self.decode_medians_ns() if self.shape.gen else self.prefill_medians_ns()

    def cpu_per_wall(self) -> float | None:
        """CPU seconds per second of wall time while measuring: about the number of threads that worked."""
        if any(r["cpu_ns"] is None for r in self.rounds):
            return None  # another process did the work
        wall = sum(self.prefill_ns()) + sum(self.decode_ns())
        return sum(r["cpu_ns"] for r in self.rounds) / wall if wall else None


def quantile(samples: list[int], q: float) -> float:
    """The q-quantile by linear interpolation."""
    return float(np.quantile(samples, q))
