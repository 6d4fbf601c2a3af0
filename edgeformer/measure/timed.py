"""The timed part: what runs between two clock readings, and nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from edgeformer.runtimes._protocol import Session

MAX_WARMUP, STEADY = 4, 0.05


@dataclass
class Round:
    """Samples of one round in nanoseconds: one prefill and `gen` decode steps, or one encoder call per shape.

    `cpu_ns` is the process's CPU time over the same spans: CPU / wall tells how many threads really worked.
    """

    prefill_ns: int = 0
    decode_ns: list[int] = field(default_factory=list)
    cpu_prefill_ns: int = 0
    cpu_decode_ns: int = 0
    tokens: list[int] = field(default_factory=list)


def decoder_round(session: Session, prompt: np.ndarray, gen: int) -> Round:
    """Prefill `prompt` int64 [1, P], then `gen` greedy steps. Choosing the token lies outside the timed spans."""
    clock, cpu, out = time.perf_counter_ns, time.process_time_ns, Round()
    session.reset()
    c0, t0 = cpu(), clock()
    logits = session.forward(prompt)
    t1, c1 = clock(), cpu()
    out.prefill_ns, out.cpu_prefill_ns = t1 - t0, c1 - c0
    step = np.zeros((1, 1), np.int64)
    start = cpu()
    for _ in range(gen):
        token = int(logits[0].argmax())
        out.tokens.append(token)
        step[0, 0] = token
        t0 = clock()
        logits = session.forward(step)
        out.decode_ns.append(clock() - t0)
    out.cpu_decode_ns = cpu() - start
    return out


def encoder_round(session: Session, inputs: dict[str, np.ndarray]) -> Round:
    """One call of an encoder on a batch."""
    c0, t0 = time.process_time_ns(), time.perf_counter_ns()
    session.encode(inputs)
    t1 = time.perf_counter_ns()
    return Round(prefill_ns=t1 - t0, cpu_prefill_ns=time.process_time_ns() - c0)


def warm_up(run) -> list[Round]:
    """Rounds to discard: until two in a row differ by less than 5 %, at most four. They are kept in the record."""
    rounds = [run()]
    while len(rounds) < MAX_WARMUP:
        rounds.append(run())
        before, now = (r.prefill_ns + sum(r.decode_ns) for r in rounds[-2:])
        if abs(now - before) <= STEADY * before:
            break
    return rounds
