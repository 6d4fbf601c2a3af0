"""Measurement noise, estimated from one row that runs twice in every run and applied to all others.

Rounds are interleaved, so round i of two rows saw the same machine state: ratios are taken within a round. The interval is the
95 % bootstrap interval (Efron 1979) of the median ratio, with a fixed seed.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np

from edgeformer.measure.row import Row

RESAMPLES, NOISY = 2000, 0.05
"""Bootstrap resamples; and the width above which a run is noisy: a row's ratio to its twin may be more than 5 % from one."""


@dataclass(frozen=True)
class Noise:
    """The ratio of a row to its twin: median and 95 % interval, over `rounds` rounds."""

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def width(self) -> float:
        """The largest |log ratio| that noise explains: e^width is the larger end of the interval."""
        return max(abs(math.log(self.low)), abs(math.log(self.high)), abs(math.log(self.ratio)))

    @property
    def noisy(self) -> bool:
        """Whether the noise hides differences of 5 %."""
        return self.width > math.log1p(NOISY)

    def ties(self, a: float, b: float) -> bool:
        """Whether two times differ by no more than the noise."""
        return abs(math.log(a / b)) <= self.width

    def text(self) -> str:
        """Display form, e.g. `0.980-1.030 x`."""
        return f"{self.low:.3f}-{self.high:.3f} x"


def interval(a: list[float], b: list[float]) -> Noise | None:
    """The ratio a/b of times taken in the same rounds, or None for fewer than two rounds."""
    count = min(len(a), len(b))
    if count < 2:
        return None
    x, y = np.array(a[:count]), np.array(b[:count])
    picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    # ratios within a round cancel drift from round to round
    ratios = np.exp(np.median(np.log(x / y)[picks], axis=1))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Noise(float(np.exp(np.median(np.log(x / y)))), float(low), float(high), count)


def of_twins(rows: list[Row], *, prefill: bool = False) -> Noise | None:
    """The noise of a shape's rows, from the row that ran twice; None without one."""
    for twin in rows:
        if twin.plan.again:
            for row in rows:
                if not row.plan.again and (row.plan.runtime, row.plan.source) == (twin.plan.runtime, twin.plan.source):
                    times = [r.prefill_medians_ns() if prefill else r.ranking_ns() for r in (row, twin)]
                    return interval(*times)
    return None


def spread(row: Row) -> float | None:
    """Standard deviation over mean of the rounds' medians, or None for fewer than two rounds."""
    samples = row.ranking_ns()
    return statistics.stdev(samples) / statistics.mean(samples) if len(samples) > 1 else None
