"""Text generation over any runtime's session: greedy or sampled, streamed without breaking multi-byte characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.errors import InputError
from edgeformer.runtimes._protocol import Session, check_ids


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


def load_tokenizer(folder: Path | None) -> Any:
    """The `tokenizers.Tokenizer` of a model folder.

    Raises:
        InputError: the folder has no tokenizer.json.
    """
    if folder is None or not (folder / "tokenizer.json").exists():
        where = "this model" if folder is None else str(folder)
        raise InputError(f"{where} has no tokenizer.json, so text can't be read; give token ids with --ids")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:  # tokenizers raises bare Exceptions
        raise InputError(f"{folder / 'tokenizer.json'} can't be read: {e}") from e


def stream_ids(
    session: Session, prompt: list[int], count: int, sampling: Sampling, stop: frozenset[int] = frozenset()
) -> Iterator[int]:
    """Generated ids, one by one, until `count` or a stop id (which is not given out).

    Raises:
        InputError: an empty prompt, ids outside the vocabulary, or more tokens than the session holds; at once.
    """
    if not prompt:
        raise InputError("the prompt has no tokens")
    if len(prompt) + count > session.capacity:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {count} new ones exceed the {session.capacity} positions there are"
        )
    check_ids(np.array(prompt), session.spec.vocab)
    return _stream(session, prompt, count, sampling, stop)


def _stream(session: Session, prompt: list[int], count: int, sampling: Sampling, stop: frozenset[int]) -> Iterator[int]:
    rng = np.random.default_rng(sampling.seed)
    session.reset()
    logits = session.forward(np.array([prompt], np.int64))[0]
    for i in range(count):
        token = choose(logits, sampling, rng)
        if token in stop:
            return
        yield token
        if i + 1 < count:
            logits = session.forward(np.array([[token]], np.int64))[0]


def stream_text(tokenizer: Any, ids: Iterator[int], prompt: Sequence[int] = ()) -> Iterator[str]:
    """Text after the prompt's as it becomes complete: a character whose bytes are still arriving is held back.

    The prompt's ids are decoded with the new ones: where they meet, some tokenizers put a space.
    """
    seen = list(prompt)
    shown = tokenizer.decode(seen) if seen else ""
    text = shown
    for token in ids:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    if len(text) > len(shown):
        yield text[len(shown) :]
