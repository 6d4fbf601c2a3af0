"""Results of a comparison: checks, and the verdict stored with an artefact and with each benchmark row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PASS, NEAR_TIE, FAIL, UNCHECKED = "pass", "near-tie", "fail", "unchecked"


@dataclass
class Check:
    """The result of one check. `max_abs` is over all compared values; `first_divergence` is a token's index, or None."""

    name: str
    verdict: str
    max_abs: float | None = None
    limit: float | None = None
    top1: float | None = None
    kl_mean: float | None = None
    first_divergence: int | None = None
    note: str = ""


@dataclass
class Verdict:
    """The outcome of all checks, and what was compared with what."""

    verdict: str
    runtime: str
    reference: str
    precision: str
    positions: int
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def overall(checks: list[Check]) -> str:
    """The worst verdict of fail, near-tie and pass; unchecked if nothing could be compared."""
    verdicts = {c.verdict for c in checks}
    for verdict in (FAIL, NEAR_TIE, PASS):
        if verdict in verdicts:
            return verdict
    return UNCHECKED
