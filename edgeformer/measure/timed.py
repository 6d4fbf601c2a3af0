"""The timed code: only what runs between two clock readings."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from edgeformer.inference.runtime import Session
from edgeformer.spec.task import Task
from edgeformer.verification.reference import start_tokens

MAX_WARMUP, STEADY, STEADY_ROUNDS = 10, 0.05, 3
WARMUP_S = 60.0
"""Total time after which the warm-up stops, settled or not."""
ENCODER_CALLS = 8
LEAD_IN_S, LEAD_IN_TOKENS = 0.1, 8


@dataclass
class Round:
    """Samples of one round in nanoseconds: one prefill and `gen` decode steps, or several calls of an encoder. The prefill of an
    encoder–decoder model is the encoder (`encode_ns`) and the first decoder step.

    `cpu_ns` is the process's CPU time over the same spans: CPU / wall is the effective number of threads; None if another
    process does the work. `tokens` [batch][gen] are the chosen ones. For servers, `prefill_ns` are the clients' times to first
    token, and `wall_ns` spans the first request to the last token.
    """

    prefill_ns: list[int] = field(default_factory=list)
    decode_ns: list[int] = field(default_factory=list)
    cpu_ns: int | None = 0
    tokens: list[list[int]] = field(default_factory=list)
    wall_ns: int | None = None
    encode_ns: list[int] = field(default_factory=list)

    def timed_ns(self) -> int:
        """All timed spans."""
        return sum(self.prefill_ns) + sum(self.decode_ns)


def lead_in(session: Session, prompt: np.ndarray) -> None:
    """Run short untimed work before a round: after a pause or other rows, cores are idle and CPU caches hold other data."""
    until = time.perf_counter() + LEAD_IN_S
    session.reset()
    if session.spec.task == Task.TEXT2TEXT_GENERATION:
        session.source(np.ascontiguousarray(prompt[:, :LEAD_IN_TOKENS]))
    session.forward(np.ascontiguousarray(prompt[:, :LEAD_IN_TOKENS]))
    step = np.ascontiguousarray(prompt[:, :1])
    while time.perf_counter() < until and session.length < session.capacity:
        session.forward(step)


def decoder_round(session: Session, prompt: np.ndarray, gen: int, depth: int = 0, *, cold: bool = False) -> Round:
    """Prefill `prompt` int64 [B, depth + P], of which the first `depth` are not timed, then `gen` greedy steps. A `cold` round
    has no lead-in. An encoder–decoder model encodes the prompt, and its first step is that of the start token.

    Token selection isn't timed. A session whose work is done elsewhere reports the time itself (`took_ns`).
    """
    clock, cpu, out = time.perf_counter_ns, time.process_time_ns, Round()
    if not cold:
        lead_in(session, prompt)
    session.reset()
    if depth:
        session.forward(prompt[:, :depth])
    asked, used, encoded = np.ascontiguousarray(prompt[:, depth:]), 0, 0
    if session.spec.task == Task.TEXT2TEXT_GENERATION:
        c0, t0 = cpu(), clock()
        session.source(asked)
        t1, c1 = clock(), cpu()
        encoded = t1 - t0 if session.took_ns is None else session.took_ns
        out.encode_ns.append(encoded)
        used, asked = c1 - c0, start_tokens(len(prompt))
    c0, t0 = cpu(), clock()
    logits = session.forward(asked)
    t1, c1 = clock(), cpu()
    out.prefill_ns.append(encoded + (t1 - t0 if session.took_ns is None else session.took_ns))
    used += c1 - c0
    step = np.zeros((len(prompt), 1), np.int64)
    chosen = []
    for _ in range(gen):
        tokens = logits.argmax(-1)
        chosen.append(tokens)
        step[:, 0] = tokens
        c0, t0 = cpu(), clock()
        logits = session.forward(step)
        t1, c1 = clock(), cpu()
        out.decode_ns.append(t1 - t0 if session.took_ns is None else session.took_ns)
        used += c1 - c0
    out.cpu_ns = used if session.took_ns is None else None
    out.tokens = np.stack(chosen, 1).tolist() if chosen else [[] for _ in prompt]
    return out


def encoder_round(session: Session, inputs: dict[str, np.ndarray]) -> Round:
    """Time several calls of an encoder on a batch."""
    clock, cpu, out, used = time.perf_counter_ns, time.process_time_ns, Round(), 0
    for _ in range(ENCODER_CALLS):
        c0, t0 = cpu(), clock()
        session.encode(inputs)
        t1, c1 = clock(), cpu()
        out.prefill_ns.append(t1 - t0 if session.took_ns is None else session.took_ns)
        used += c1 - c0
    out.cpu_ns = used if session.took_ns is None else None
    return out


def served_round(session: Session, prompts: list[list[int]], gen: int) -> Round:
    """Send one request per client concurrently; record TTFT and inter-token latencies as the clients see them."""
    clock = time.perf_counter_ns
    with ThreadPoolExecutor(len(prompts)) as pool:
        t0 = clock()
        answers = list(pool.map(lambda prompt: session.serve(prompt, gen), prompts))
        wall = clock() - t0
    out = Round(cpu_ns=None, wall_ns=wall)
    for answer in answers:
        arrivals = answer.arrivals_ns
        out.prefill_ns.append(arrivals[0] - answer.asked_ns)
        out.decode_ns += [b - a for a, b in pairwise(arrivals)]
    return out


def warm_up(run: Callable[[], Round]) -> tuple[list[Round], bool]:
    """Run rounds until three in a row are within 5 % of each other, at most ten rounds or one minute. Returns these rounds, which
    aren't counted but are kept in the record, and whether they settled."""
    rounds: list[Round] = []
    while len(rounds) < MAX_WARMUP and sum(r.timed_ns() for r in rounds) < WARMUP_S * 1e9:
        rounds.append(run())
        last = [r.timed_ns() for r in rounds[-STEADY_ROUNDS:]]
        if len(last) == STEADY_ROUNDS and max(last) - min(last) <= STEADY * min(last):
            return rounds, True
    return rounds, False
