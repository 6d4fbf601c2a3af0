"""Checks of a session's inputs, before anything runs: given bad ids, runtimes read out of bounds, wrap around or return NaN."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeformer.errors import InputError
from edgeformer.layers.encoder import Encoder
from edgeformer.spec import Model


def check_ids(ids: np.ndarray, vocab: int) -> None:
    """Check that all ids are inside the vocabulary.

    Raises:
        InputError: naming the id.
    """
    if ids.size == 0:
        raise InputError("there are no token ids")
    if ids.size == 1:  # the decode step, where two reductions are expensive
        low = high = int(ids.item())
    else:
        low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab:
        raise InputError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab} (0..{vocab - 1})")


def check_real(mask: np.ndarray) -> None:
    """Check that every row has a real token. mask: [B, T], 0 where padded.

    Raises:
        InputError: naming the row.
    """
    empty = np.flatnonzero(~np.asarray(mask, bool).any(1))
    if len(empty):
        raise InputError(f"row {empty[0]} is all padding; llama.cpp needs a token in every row")


def check_valid(valid: np.ndarray, shape: tuple[int, ...]) -> None:
    """Check that a mask has the ids' shape and only the values 0 and 1.

    Raises:
        InputError: naming the rule that it breaks.
    """
    if valid.shape != shape:
        raise InputError(f"the mask has shape {list(valid.shape)}; it must have the ids' shape {list(shape)}")
    if valid.dtype != bool and not np.isin(valid, (0, 1)).all():
        raise InputError("the mask has values other than 0 (padding) and 1 (a token)")


def checked_encoder_inputs(spec: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An encoder's inputs, int64 [B, T], checked and completed: `input_ids`; `attention_mask`, by default ones; and for a model
    with token types `token_type_ids`, by default zeros (as in transformers).

    Raises:
        InputError: an id, token type or mask value out of range, shapes that differ, or more tokens than the model has
            positions.
    """
    ids = inputs["input_ids"]
    if ids.ndim != 2:
        raise InputError(f"input_ids must have shape [batch, tokens], got {list(ids.shape)}")
    check_ids(ids, spec.vocab)
    if ids.shape[1] > spec.context:
        raise InputError(f"{ids.shape[1]} tokens exceed the model's {spec.context} positions")
    mask = inputs.get("attention_mask")
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
    check_valid(made["attention_mask"], ids.shape)
    count = spec.token_types if isinstance(spec, Encoder) else 0
    types = inputs.get("token_type_ids")
    if types is not None and count:
        if types.shape != ids.shape:
            raise InputError(f"token_type_ids has shape {list(types.shape)}; input_ids has {list(ids.shape)}")
        if types.min() < 0 or types.max() >= count:
            wrong = int(types.min() if types.min() < 0 else types.max())
            raise InputError(f"token type {wrong} is outside the model's {count} types (0..{count - 1})")
    if count > 1:
        made["token_type_ids"] = np.zeros_like(ids) if types is None else types
    return made


def check_no_hole(mask: np.ndarray) -> None:
    """Refuse a first prompt with padding between real tokens.

    Raises:
        InputError: naming the row.
    """
    changes = np.abs(np.diff(mask, axis=1)).sum(1)
    inner = (changes > 1) & ~((mask[:, 0] == 0) & (mask[:, -1] == 0) & (changes == 2))
    if inner.any():
        raise InputError(
            f"row {int(inner.argmax())} of the first prompt has padding between real tokens; pad on the left or the right"
        )


def check_padded_left(mask: np.ndarray) -> None:
    """Refuse padding between a row's real tokens, for caches that hold the last slots and not the last real tokens.

    Raises:
        InputError: naming the row.
    """
    if (inner := (np.diff(mask, axis=1) < 0).any(1) & (mask[:, -1] != 0)).any():
        raise InputError(
            f"row {int(inner.argmax())} goes on after padding, and this model's windowed KV caches hold slots, not real tokens;"
            " pad prompts on the left, or export without --windowed-cache"
        )


def last_real(logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Of logits [B, T, V], each row's last position that isn't padding: [B, V]; position T - 1 for a row that is all padding."""
    last = valid.shape[1] - 1 - np.argmax(valid[:, ::-1] != 0, axis=1)
    return logits[np.arange(len(logits)), last]
