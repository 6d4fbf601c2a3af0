"""What a comparison came to: checks, and the verdict that travels with an artefact and with each benchmark row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PASS, NEAR_TIE, FAIL, UNCHECKED = "pass", "near-tie", "fail", "unchecked"


@dataclass
class Check:
    """One rung of the ladder. `max_abs` over all compared values; `first_divergence` is a token's index, or None."""

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
    """What was compared with what, and how it came out."""

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
    """fail if anything failed, near-tie if the worst is one, unchecked if nothing could be compared."""
    verdicts = {c.verdict for c in checks}
    for verdict in (FAIL, NEAR_TIE, PASS):
        if verdict in verdicts:
            return verdict
    return UNCHECKED
