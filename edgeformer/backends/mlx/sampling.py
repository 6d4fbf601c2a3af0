"""Sample tokens on the device, in plain MLX ops, so that a decode loop never waits for the host.

The rules are those of `edgeformer.ops.sampling.choose`, in the same order: temperature, top-k, min-p, top-p.
"""

from __future__ import annotations

import math

import mlx.core as mx

from edgeformer.errors import NumericError
from edgeformer.ops.sampling import Sampling, nonfinite_logits

NO_TOKEN = -1


def sample(logits: mx.array, key: mx.array, sampling: Sampling) -> mx.array:
    """Sample one id per row, int32 [B], from logits [B, V]; -1 where the largest logit is NaN or infinite. `key` is unused if
    the temperature is 0."""
    best = logits.max(-1)
    return mx.where(mx.isfinite(best), _sample(logits, key, sampling), mx.array(NO_TOKEN, mx.int32))


def checked(token: int) -> int:
    """Validate a token from `sample`.

    Raises:
        NumericError: the token is -1: the logits were NaN or infinite.
    """
    if token == NO_TOKEN:
        raise NumericError(nonfinite_logits("nan or infinite"))
    return token


def _sample(logits: mx.array, key: mx.array, sampling: Sampling) -> mx.array:
    if sampling.temperature == 0:
        return mx.argmax(logits, -1).astype(mx.int32)
    scores, ids = logits.astype(mx.float32) / sampling.temperature, None
    if 0 < sampling.top_k < scores.shape[-1]:  # all further work is on k entries instead of the vocabulary
        ids = mx.argpartition(-scores, sampling.top_k - 1, axis=-1)[:, : sampling.top_k]
        scores = mx.take_along_axis(scores, ids, -1)
    if sampling.min_p > 0:
        floor = scores.max(-1, keepdims=True) + math.log(sampling.min_p)
        scores = mx.where(scores < floor, -mx.inf, scores)
    if sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    choice = mx.random.categorical(scores, -1, key=key)
    if ids is not None:
        choice = mx.take_along_axis(ids, choice[:, None], -1)[:, 0]
    return choice.astype(mx.int32)


def _nucleus(scores: mx.array, top_p: float) -> mx.array:
    """Scores with -inf outside the smallest set whose probability reaches `top_p` (Holtzman et al. 2019)."""
    order = mx.argsort(-scores, axis=-1)
    falling = mx.take_along_axis(scores, order, -1)
    p = mx.softmax(falling, -1)
    kept = mx.where(p.cumsum(-1) - p < top_p, falling, -mx.inf)
    return mx.put_along_axis(mx.zeros_like(scores), order, kept, -1)
