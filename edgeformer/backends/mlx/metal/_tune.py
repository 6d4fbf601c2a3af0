"""Measure whether a kernel pays off on this machine: whole decode steps with and without it, interleaved, checked first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from edgeformer.backends.mlx.decode import DecodeSession
from edgeformer.backends.mlx.metal._kernel import EPSILON, Kernel
from edgeformer.backends.mlx.module import MlxModel
from edgeformer.ops.sampling import Sampling

WORTH = 1.01
"""The least ratio of step times (without / with) at which a kernel is chosen; smaller gains are noise."""


@dataclass
class Tuning:
    """The result of `tune`. chosen: kernels to use; ratios: configuration -> step time without / with it, one per round; errors:
    largest |difference| of logits, relative to the largest logit; wrong: configurations that failed the checks; step_s: median
    seconds per step without kernels."""

    chosen: list[str] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    step_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON data."""
        return asdict(self)


def tune(
    model: MlxModel,
    kernels: Mapping[str, Kernel],
    *,
    compiled: bool = True,
    prompt: int = 128,
    steps: int = 64,
    rounds: int = 5,
    report: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Measure each kernel alone, then all beneficial ones together.

    Args:
        model: packed, in eval mode; the kernels of its `ops` are switched while measuring, and left at the chosen ones.
        kernels: the candidates.
        compiled: whether steps are compiled.
        prompt: tokens in the cache before the first step.
        steps: steps per round and configuration.
        rounds: number of rounds; each runs every configuration once.
        report: called with a text per stage.
    """
    tuning = Tuning()
    alone = {name: {name: kernel} for name, kernel in kernels.items()}
    _measure(model, alone, tuning, compiled, prompt, steps, rounds, report)
    gains = {name: statistics.median(tuning.ratios[name]) for name in alone if name not in tuning.wrong}
    good = sorted((name for name, gain in gains.items() if gain >= WORTH), key=lambda n: -gains[n])
    if len(good) > 1:
        together = " + ".join(good)
        configuration = {together: {name: kernels[name] for name in good}}
        _measure(model, configuration, tuning, compiled, prompt, steps, rounds, report)
        worse = together in tuning.wrong or statistics.median(tuning.ratios[together]) < gains[good[0]]
        good = good[:1] if worse else good
    tuning.chosen = good
    model.ops.kernels = {name: kernels[name] for name in good}
    return tuning


def _measure(
    model: MlxModel,
    configurations: Mapping[str, Mapping[str, Kernel]],
    tuning: Tuning,
    compiled: bool,
    prompt: int,
    steps: int,
    rounds: int,
    report: Callable[[str], None],
) -> None:
    """Record ratios and errors of some configurations relative to no kernels."""
    spec = model.layer
    ids = mx.random.randint(0, spec.vocab, (1, prompt), key=mx.random.key(0))
    decoders: dict[str, DecodeSession] = {}
    reference: mx.array | None = None
    for name, used in {"": {}, **configurations}.items():
        report(f"checking {name or 'the ops'}")
        model.ops.kernels = dict(used)
        decoder = DecodeSession(model, 1, prompt + steps + 8, compiled=compiled)
        decoder.prefill(ids)
        logits = decoder.step(ids[:, 0]).astype(mx.float32)
        if reference is None:
            reference = logits
        else:
            expected, found = np.array(reference), np.array(logits)
            error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
            tuning.errors[name] = error
            # the kernel's own cases check that it is correct; this checks that it is used correctly. The limit is the effect of
            # rounding each residual addition differently, with some margin, and at least the error of MLX's fast cosine
            allowed = max(8 * (2 * spec.depth()) ** 0.5 * EPSILON[model.cache_dtype()], 5e-3)
            if not error <= allowed or not all(_is_right(kernel, model.cache_dtype()) for kernel in used.values()):
                tuning.wrong.append(name)
                continue
        _steps(decoder, 3)  # traces and compiles
        decoders[name] = decoder
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for i in range(rounds):
        report(f"round {i + 1}/{rounds}")
        order = list(decoders)[i % len(decoders) :] + list(decoders)[: i % len(decoders)]
        for name in order:
            model.ops.kernels = dict(configurations.get(name, {}))
            decoders[name].end = prompt
            times[name].append(_steps(decoders[name], steps))
    for name in decoders:
        if name:
            tuning.ratios[name] = [a / b for a, b in zip(times[""], times[name], strict=True)]
    tuning.step_s = statistics.median(times[""])


def _is_right(kernel: Kernel, dtype: mx.Dtype) -> bool:
    """Whether every case matches its float64 oracle."""
    return all(case.error(case.call(kernel)) <= 1 for case in kernel.cases(dtype))


def _steps(decoder: DecodeSession, count: int) -> float:
    """Seconds per greedy step, launched one step ahead of the reader, as in generation."""
    key, greedy = mx.random.key(0), Sampling()
    token = mx.array([1], mx.int32)
    start = time.perf_counter()
    for _ in range(count):
        following, key = decoder.advance(token, None, key, greedy)
        mx.async_eval(following)
        mx.eval(token)
        token = following
    mx.eval(token)
    return (time.perf_counter() - start) / count
