"""End-to-end generation speed: each runtime's own generation loop, in turns in one process.

For runtimes that sample on the device and run ahead (`Session.tokens`). Rows of `bench` feed tokens one by one and wait for
the logits of each, so that every runtime decodes the same ids; here the loop itself is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from edgeformer.inference.runtime import Session
from edgeformer.ops.sampling import Sampling


@dataclass
class Lap:
    """One generation: tokens, seconds to the first token, seconds from the first to the last."""

    tokens: list[int] = field(default_factory=list)
    first_s: float = 0.0
    rest_s: float = 0.0

    def decode_rate(self) -> float:
        """Tokens per second after the first."""
        return (len(self.tokens) - 1) / self.rest_s if self.rest_s else 0.0


def race(sessions: dict[str, Session], prompt: list[int], count: int, rounds: int) -> dict[str, list[Lap]]:
    """Run `rounds` greedy generations per session, in rotating order, after an uncounted warm-up."""
    laps: dict[str, list[Lap]] = {name: [] for name in sessions}
    for session in sessions.values():
        _lap(session, prompt, count)
    names = list(sessions)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            laps[name].append(_lap(sessions[name], prompt, count))
    return laps


def _lap(session: Session, prompt: list[int], count: int) -> Lap:
    lap = Lap()
    start = time.perf_counter()
    first = start
    for token in session.tokens(prompt, count, Sampling()):
        if not lap.tokens:
            first = time.perf_counter()
        lap.tokens.append(token)
    lap.first_s, lap.rest_s = first - start, time.perf_counter() - first
    return lap
