"""A runtime that computes nothing, to measure the harness itself: every step returns the same zero logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session


class NullSession(Session):
    """Returns zeros at once."""

    def __init__(self, loaded: LoadedModel, options: Options):
        super().__init__(loaded.spec, options)
        self._logits = np.zeros((options.batch, loaded.spec.vocab), np.float32)

    def _step(self, ids, mask, all_positions):
        return np.repeat(self._logits[:, None], ids.shape[1], 1) if all_positions else self._logits

    def _encode(self, inputs):
        shape = inputs["input_ids"].shape
        sizes = {"batch_size": shape[0], "sequence_length": shape[1]}
        return {
            name: np.zeros([sizes.get(d, d) for d in dims], np.float32)  # type: ignore[arg-type]
            for name, dims in self.spec.outputs().items()
        }


class Runtime(base.Runtime):
    """The null runtime."""

    opens = "checkpoint"
    ranked = False

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, LoadedModel)
        return NullSession(source, options)
