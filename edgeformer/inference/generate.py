"""Text generation over any runtime's session: greedy or sampled, streamed without breaking multi-byte characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgeformer.checkpoint.companions.tokenizer import Tokenizer
from edgeformer.errors import InputError
from edgeformer.inference.inputs import check_ids
from edgeformer.inference.runtime import Session
from edgeformer.ops.sampling import Sampling


def stream_ids(
    session: Session, prompt: list[int], count: int, sampling: Sampling, stop: frozenset[int] = frozenset()
) -> Iterator[int]:
    """Generated ids, one by one, until `count` or a stop id (which is not yielded).

    Raises:
        InputError: an empty prompt, ids outside the vocabulary, or more tokens than the session holds; raised by the call
            itself, not by the iterator.
    """
    if not prompt:
        raise InputError("the prompt has no tokens")
    if len(prompt) + count > session.capacity:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {count} new tokens exceed the {session.capacity} positions of the session"
        )
    check_ids(np.array(prompt), session.spec.vocab)
    return _stream(session, prompt, count, sampling, stop)


def _stream(session: Session, prompt: list[int], count: int, sampling: Sampling, stop: frozenset[int]) -> Iterator[int]:
    for token in session.tokens(prompt, count, sampling):
        if token in stop:
            return
        yield token


def stream_text(tokenizer: Tokenizer, ids: Iterator[int], prompt: Sequence[int] = ()) -> Iterator[str]:
    """The generated text, in pieces: a character whose bytes are still incomplete is held back.

    The prompt's ids are decoded together with the new ones, because some tokenizers put a space where they meet.
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
