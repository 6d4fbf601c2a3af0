"""How the next token is chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeformer.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. `top_k` 0 keeps all; `top_p` keeps the smallest set with that probability; `min_p` drops
    tokens below that share of the best one's probability."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 100), ("top_p", 1e-9, 1), ("min_p", 0, 1), ("top_k", 0, 1 << 30)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must lie in [{low:g}, {high:g}], got {getattr(self, name)}")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")


def choose(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token id from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if sampling.min_p:
        p[p < sampling.min_p * p.max()] = 0
    if sampling.top_p < 1:
        order = np.argsort(-p)
        beyond = np.cumsum(p[order]) - p[order] >= sampling.top_p * p.sum()
        p[order[beyond]] = 0
    return int(rng.choice(len(p), p=p / p.sum()))
