"""Prefill and decode steps: prompts in chunks, single tokens through one compiled function.

A compiled step takes positions as arrays, so that a new token doesn't cause a retrace. The visible part of the cache grows by
doubling, with one trace per size: 256, 512, ... columns, up to the capacity.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from edgeformer.backends.mlx.module import MlxModel
from edgeformer.backends.mlx.sampling import checked, sample
from edgeformer.backends.mlx.store import MlxStore
from edgeformer.errors import InputError
from edgeformer.layers.rope import length_dependent
from edgeformer.ops.sampling import Sampling

CHUNK = 512
"""Prompt tokens per prefill pass: bounds the memory of activations."""
FIRST_VISIBLE = 256


class DecodeSession:
    """A decoder model with its KV cache.

    Args:
        model: the model, packed or not.
        batch: batch size.
        capacity: longest sequence, prompt and new tokens.
        compiled: whether decode steps go through `mx.compile`. Without a GPU this needs a C++ compiler at run time.
        store: the cache's class.
    """

    def __init__(
        self, model: MlxModel, batch: int, capacity: int, *, compiled: bool = True, store: type[MlxStore] = MlxStore
    ):
        self._store = store
        self.model, self.batch, self.capacity, self.compiled = model, batch, capacity, compiled
        self._steps: dict[Any, Callable] = {}
        self._weights: list[mx.array] = []
        self.prefix: mx.array | None = None
        # length-dependent RoPE and prefix LMs (whose prefix attends ahead) need the prompt in one pass
        self._whole_prompts = length_dependent(model.layer) or model.layer.prefixed
        self.reset()

    def reset(self) -> None:
        """Clear the cache, and drop compiled steps if the model's weights have changed since (by training)."""
        dtype, weights = self.model.cache_dtype(), list(self.model.state_dict().values())
        if len(weights) != len(self._weights) or any(a is not b for a, b in zip(weights, self._weights, strict=True)):
            self._steps, self._weights = {}, weights
        self.store = self._store(self.model.layer, self.batch, self.capacity, dtype)
        self.end = 0

    def prefill(self, ids: mx.array, mask: mx.array | None = None, *, keep: int = 1) -> mx.array:
        """Process prompt tokens, one chunk at a time. If only the last token's logits are needed, that token runs as a separate
        decode step, so that the last block skips its FFN for all other tokens.

        Args:
            ids: int32 [B, T].
            mask: int32 [B, end + T] over all columns so far, 0 where padded; None without padding.
            keep: logits of the last `keep` positions of the last chunk; 0 for all positions of all chunks.

        Returns:
            logits [B, keep or T, V].

        Raises:
            InputError: the tokens don't fit into the cache.
        """
        self._check_room(ids.shape[1])
        alone = keep == 1 and ids.shape[1] > 1 and not self._whole_prompts
        body, parts, start = ids[:, :-1] if alone else ids, [], self.end
        size = body.shape[1] if self._whole_prompts else CHUNK
        for at in range(0, body.shape[1], size):
            chunk = body[:, at : at + size]
            self.store.start, self.store.visible, self.end = self.end, None, self.end + chunk.shape[1]
            seen = None if mask is None else mask[:, : start + at + chunk.shape[1]]
            logits = self.model(chunk, seen, store=self.store, keep=keep, prefix_length=self.prefix)
            if keep == 0 or (not alone and at + size >= body.shape[1]):
                parts.append(logits)
            # MLX is lazy: unneeded logits and the last block's FFN are never computed
            mx.eval(parts[-1:], *self.store.arrays.values())
        mx.clear_cache()
        if alone:
            return self.step(ids[:, -1], mask)[:, None]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, 1)

    def step(self, tokens: mx.array, mask: mx.array | None = None) -> mx.array:
        """Logits [B, V] after one more token per row, int32 [B]. `mask` as in `prefill`."""
        return self.advance(tokens, mask, mx.array(0), None)[0]

    def stream(self, prompt: mx.array, count: int, sampling: Sampling) -> Iterator[int]:
        """Generate `count` tokens after a prompt [1, T]; while one is yielded, the next is being computed."""
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64
        key, now = mx.random.split(mx.random.key(seed))
        token = sample(self.prefill(prompt)[:, -1], now, sampling)
        mx.async_eval(token)
        for i in range(count):
            following = token
            if i + 1 < count:
                following, key = self.advance(token, None, key, sampling)
                mx.async_eval(following)
            found = token.item()
            assert isinstance(found, int)
            yield checked(found)
            token = following

    def advance(
        self, tokens: mx.array, mask: mx.array | None, key: mx.array, sampling: Sampling | None
    ) -> tuple[mx.array, mx.array]:
        """Start one step without waiting for it; returns the next tokens (logits if `sampling` is None) and the next key."""
        self._check_room(1)
        visible = min(max(FIRST_VISIBLE, 1 << self.end.bit_length()), self.capacity)
        if mask is not None:
            mask = mx.pad(mask, [(0, 0), (0, visible - mask.shape[1])])
        slot = (visible, sampling, mask is None)
        if slot not in self._steps:
            step = self.step_function(visible, sampling)
            self._steps[slot] = mx.compile(step) if self.compiled else step
        names, arrays = list(self.store.arrays), list(self.store.arrays.values())
        self.store.arrays = {}  # drop our references: arrays without other references are updated in place
        result, key, arrays = self._steps[slot](tokens[:, None], mx.array(self.end, mx.int32), mask, key, arrays)
        self.store.arrays = dict(zip(names, arrays, strict=True))
        self.end += 1
        return result, key

    def _check_room(self, count: int) -> None:
        """Raise before writing past the cache's end, which MLX doesn't check."""
        if self.end + count > self.capacity:
            raise InputError(f"{self.end} + {count} tokens do not fit: the cache holds {self.capacity}")

    def step_function(self, visible: int, sampling: Sampling | None) -> Callable:
        """One step as a pure function for `mx.compile`: (tokens [B, 1], start, mask, key, cache) -> (tokens [B] or logits
        [B, V], key, cache). Attention sees the first `visible` columns of the cache."""
        names = list(self.store.arrays)

        def step(tokens: mx.array, start: mx.array, mask: mx.array | None, key: mx.array, arrays: list) -> tuple:
            store = self._store.over(dict(zip(names, arrays, strict=True)), start, visible)
            logits = self.model(tokens, mask, store=store, keep=1, prefix_length=self.prefix)[:, -1]
            written = [store.arrays[name] for name in names]
            if sampling is None:
                return logits, key, written
            key, now = mx.random.split(key)
            return sample(logits, now, sampling), key, written

        return step
