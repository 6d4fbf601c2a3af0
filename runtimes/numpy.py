"""The reference back end as a runtime: slow, without any further dependency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from edgeformer.backends.numpy import Handle, NumpyModel, NumpyOps
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.inference import runtime as base
from edgeformer.inference.profile import layer_clock
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.runtimes._encoder_decoder import EncoderDecoderSession
from edgeformer.runtimes._precision import rounded


class NumpySession(Session):
    """float32 arithmetic on weights rounded to the requested precision."""

    def __init__(self, loaded: LoadedModel, options: Options):
        super().__init__(loaded.spec, options)
        self._threads = threadpool_limits(
            options.threads
        )  # of the BLAS library; the limit lasts as long as the session
        self.model, self.past = NumpyModel(loaded.spec, rounded(loaded.require_weights(), options.precision)), {}

    def _step(self, ids, mask, all_positions):
        outputs, self.past = self.model(
            ids, mask, past=self.past, keep=0 if all_positions else 1, prefix_length=self.prefix
        )
        logits = outputs["logits"]
        return logits if all_positions else logits[:, -1]

    def _reset(self):
        self.past = {}

    def profile(self, call, before=None):
        if before is not None:
            before()
        with layer_clock(self.model.ops, lambda _: None) as found:
            call()
        return list(found.values())

    def facts(self):
        return {"device": "cpu", "kv": "fp32", "weights_mmap": False}

    def _encode(self, inputs):
        outputs, _ = self.model(inputs["input_ids"], inputs["attention_mask"], None, inputs.get("token_type_ids"))
        return outputs


class Runtime(base.Runtime):
    """numpy."""

    opens = "checkpoint"
    packages = ("numpy",)
    slow = True
    tasks = base.EVERY_TASK
    prefixes = True

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, LoadedModel)
        if isinstance(source.spec, EncoderDecoder):
            ops, weights = NumpyOps(), rounded(source.require_weights(), options.precision)
            root = Handle(ops, source.spec, 0, lambda name: np.asarray(weights[name]).astype(np.float32))
            return EncoderDecoderSession(source.spec, options, ops, root, np.asarray)
        return NumpySession(source, options)
