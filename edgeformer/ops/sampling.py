"""Sampling: choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeformer.errors import InputError, NumericError


@dataclass(frozen=True)
class Rules:
    """Logits processors applied before sampling, as in transformers' `generate`, in this order.

    repetition_penalty: logits of tokens that already occur are divided by it, negative ones multiplied (Keskar et al. 2019,
    arXiv 1909.05858, section 4.1). no_repeat_ngram: no n-gram of this size occurs twice; 0 is off. bad_words: token sequences
    that are never completed. min_length, min_new: minimum number of total, or new, tokens before `eos`. forced_bos: the token
    after the first. forced_eos: the last token at maximum length. suppressed: never generated; suppressed_first: never generated
    as the first token.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new: int = 0
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise InputError(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        for name in ("no_repeat_ngram", "min_length", "min_new"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")

    def apply(self, logits: np.ndarray, ids: Sequence[int], prompt: int, longest: int) -> np.ndarray:
        """Process logits [V] that follow the sequence `ids`, whose first `prompt` are the prompt; `longest`: maximum length."""
        out = logits.astype(np.float32, copy=True)
        if self.repetition_penalty != 1:
            seen = np.unique(np.asarray(ids))
            out[seen] = np.where(
                out[seen] < 0, out[seen] * self.repetition_penalty, out[seen] / self.repetition_penalty
            )
        banned = [*self._repeated(ids), *self._bad(ids)]
        if len(ids) < self.min_length or len(ids) < prompt + self.min_new:
            banned += self.eos
        out[_within(banned, out)] = -np.inf
        if self.forced_bos is not None and len(ids) == 1:
            out = _only((self.forced_bos,), out)
        if self.forced_eos and len(ids) == longest - 1:
            out = _only(self.forced_eos, out)
        out[_within(self.suppressed, out)] = -np.inf
        if len(ids) == (prompt if prompt > 1 or self.forced_bos is None else prompt + 1):
            out[_within(self.suppressed_first, out)] = -np.inf
        return out

    def _repeated(self, ids: Sequence[int]) -> list[int]:
        """Tokens that would repeat an n-gram."""
        size = self.no_repeat_ngram
        if not size or len(ids) + 1 < size:
            return []
        tail = tuple(ids[len(ids) - size + 1 :])
        return [ids[i + size - 1] for i in range(len(ids) - size + 1) if tuple(ids[i : i + size - 1]) == tail]

    def _bad(self, ids: Sequence[int]) -> list[int]:
        """Tokens that would complete a bad word."""
        return [
            word[-1]
            for word in self.bad_words
            if len(word) - 1 <= len(ids) and tuple(ids[len(ids) - len(word) + 1 :]) == word[:-1]
        ]


def _within(ids: Sequence[int], logits: np.ndarray) -> list[int]:
    return [i for i in ids if i < len(logits)]


def _only(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """Logits that allow only these tokens."""
    out = np.full_like(logits, -np.inf)
    out[_within(ids, out)] = 0
    return out


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. `temperature` 0 is greedy. `top_k` 0 keeps all tokens; `top_p` keeps the smallest set with that
    probability; `min_p` drops tokens below that share of the best one's probability. `rules` are applied to the logits first."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    rules: Rules | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 100), ("top_p", 1e-9, 1), ("min_p", 0, 1), ("top_k", 0, 1 << 30)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must lie in [{low:g}, {high:,}], got {getattr(self, name)}")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")


def check_logits(logits: np.ndarray) -> None:
    """Reject logits whose maximum is not finite (it is NaN if any logit is), since there is no best token.

    Raises:
        NumericError: the maximum is NaN or infinite.
    """
    if not np.isfinite(best := logits.max()):
        raise NumericError(nonfinite_logits(str(best)))


def nonfinite_logits(best: str) -> str:
    """The error message for logits whose maximum is `best`."""
    return (
        f"the model's logits are not finite (the largest is {best}): its weights contain NaN or infinities, or a value"
        " overflows in this precision; try --precision fp32"
    )


def choose(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """Choose a token id from logits [V], to which `Sampling.rules` were already applied.

    Raises:
        NumericError: the best logit is NaN or infinite.
    """
    check_logits(logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature may overflow all but the best score, 0, to -inf
        scores = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p)
        beyond = np.cumsum(p[order]) - p[order] >= sampling.top_p * p.sum()
        p[order[beyond]] = 0
    if sampling.min_p:
        p[p < sampling.min_p * p.max()] = 0
    return int(rng.choice(len(p), p=p / p.sum()))
