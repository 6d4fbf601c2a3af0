"""One row of a comparison: what was run, every sample, what memory it took, and whether its answers were right."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeformer.verdict import NEAR_TIE, PASS, UNCHECKED


@dataclass
class Plan:
    """A row to run: `runtime` (`name` or `name:variant`) on `source`, an artefact's folder or a MODEL.

    `precision` is of the weights, `compute` of the arithmetic. `prompt` tokens of prefill (of each sequence, for an encoder)
    in batches of `batch`.
    """

    runtime: str
    source: str
    opens: str
    precision: str
    label: str = ""
    ranked: bool = True
    prompt: int = 128
    batch: int = 1
    load_options: dict[str, Any] = field(default_factory=dict)
    compute: str = "fp32"


@dataclass
class Row:
    """Results. Times in nanoseconds, one list entry per round; `error` says why there are none."""

    plan: Plan
    threads: int
    status: str = "ok"
    error: str | None = None
    verdict: str = UNCHECKED
    checks: list[dict[str, Any]] = field(default_factory=list)
    reference: str | None = None
    load_s: float | None = None
    first: dict[str, Any] | None = None
    discarded: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    rss_source: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def verified(self) -> bool:
        """Whether the row may be ranked."""
        return self.status == "ok" and self.verdict in (PASS, NEAR_TIE) and self.plan.ranked

    def prefill_ns(self) -> list[int]:
        """Every prefill (or encoder call) of every round."""
        return [t for r in self.rounds for t in r["prefill_ns"]]

    def decode_ns(self) -> list[int]:
        """Every decode step of every round."""
        return [t for r in self.rounds for t in r["decode_ns"]]

    def decode_medians_ns(self) -> list[float]:
        """Each round's median decode step."""
        return [statistics.median(r["decode_ns"]) for r in self.rounds if r["decode_ns"]]

    def cpu_per_wall(self) -> float | None:
        """CPU seconds per second of wall time while measuring: about the number of threads that worked."""
        wall = sum(self.prefill_ns()) + sum(self.decode_ns())
        return sum(r["cpu_ns"] for r in self.rounds) / wall if wall else None


def quantile(samples: list[int], q: float) -> float:
    """The q-quantile by linear interpolation."""
    return float(np.quantile(samples, q))
