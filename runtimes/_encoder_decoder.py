"""Encoder–decoder models on the back ends that run a spec directly: numpy, torch, MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.ops.step import GrowingStore, begin


class EncoderDecoderSession(Session):
    """Self-attention K/V are concatenated at each step; cross-attention K/V of the source are computed once.

    Args:
        spec: the model.
        options: the session's options.
        ops: the back end's ops.
        root: the handle of the model's parameters.
        array: numpy array -> the back end's.
        plain: the back end's -> float32 numpy array.
        settle: compute an array of a lazy back end now, so that the time it takes is the encoder's.
    """

    def __init__(
        self,
        spec: EncoderDecoder,
        options: Options,
        ops: Any,
        root: Any,
        array: Callable,
        plain: Callable = np.asarray,
        settle: Callable[[Any], object] = lambda _: None,
    ):
        super().__init__(spec, options)
        self.model, self.ops, self.root, self.array, self.plain = spec, ops, root, array, plain
        self.settle = settle
        self.past: dict[Any, Any] = {}
        self.cross: dict[Any, Any] = {}
        self.memory = self.valid = None

    def _source(self, ids, mask):
        self.valid = self.array(mask)
        self.memory = self.model.encode(self.ops, self.root, self.array(ids), self.valid, ids.shape[1])
        self.settle(self.memory)
        self.cross = {}

    def _step(self, ids, mask, all_positions):
        store = GrowingStore(self.ops, self.past, self.cross)
        step = begin(
            self.ops,
            self.array(mask),
            new=ids.shape[1],
            store=store,
            keep=0 if all_positions else 1,
            memory=self.memory,
            memory_valid=self.ops.boolean(self.valid),
        )
        logits = self.plain(self.model.decode(self.ops, self.root, self.array(ids), step))
        self.past = store.present
        return logits if all_positions else logits[:, -1]

    def _reset(self):
        self.past = {}
