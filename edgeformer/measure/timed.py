"""The timed part: what runs between two clock readings, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgeformer.runtimes._protocol import Session

MAX_WARMUP, STEADY = 4, 0.05
ENCODER_CALLS = 8


@dataclass
class Round:
    """Samples of one round in nanoseconds: one prefill and `gen` decode steps, or several calls of an encoder.

    `cpu_ns` is the process's CPU time over the same spans: CPU / wall tells how many threads really worked.
    """

    prefill_ns: list[int] = field(default_factory=list)
    decode_ns: list[int] = field(default_factory=list)
    cpu_ns: int = 0
    tokens: list[int] = field(default_factory=list)

    def wall_ns(self) -> int:
        """All timed spans."""
        return sum(self.prefill_ns) + sum(self.decode_ns)


def decoder_round(session: Session, prompt: np.ndarray, gen: int) -> Round:
    """Prefill `prompt` int64 [1, P], then `gen` greedy steps. Choosing the token lies outside the timed spans."""
    clock, cpu, out = time.perf_counter_ns, time.process_time_ns, Round()
    session.reset()
    c0, t0 = cpu(), clock()
    logits = session.forward(prompt)
    t1, c1 = clock(), cpu()
    out.prefill_ns.append(t1 - t0)
    out.cpu_ns = c1 - c0
    step = np.zeros((1, 1), np.int64)
    for _ in range(gen):
        token = int(logits[0].argmax())
        out.tokens.append(token)
        step[0, 0] = token
        c0, t0 = cpu(), clock()
        logits = session.forward(step)
        t1, c1 = clock(), cpu()
        out.decode_ns.append(t1 - t0)
        out.cpu_ns += c1 - c0
    return out


def encoder_round(session: Session, inputs: dict[str, np.ndarray]) -> Round:
    """Several calls of an encoder on a batch."""
    clock, cpu, out = time.perf_counter_ns, time.process_time_ns, Round()
    for _ in range(ENCODER_CALLS):
        c0, t0 = cpu(), clock()
        session.encode(inputs)
        t1, c1 = clock(), cpu()
        out.prefill_ns.append(t1 - t0)
        out.cpu_ns += c1 - c0
    return out


def warm_up(run: Callable[[], Round]) -> list[Round]:
    """Rounds to discard: until two in a row differ by less than 5 %, at most four. They are kept in the record."""
    rounds = [run()]
    while len(rounds) < MAX_WARMUP:
        rounds.append(run())
        before, now = (r.wall_ns() for r in rounds[-2:])
        if abs(now - before) <= STEADY * before:
            break
    return rounds
