"""edgeformer's own CPU engine: C++ kernels for this processor's instruction set, one call per step.

It opens checkpoints and ONNX artefacts; of an artefact it takes the weights, bit for bit, and not the graph. Weights of q4 and q8
meet activations rounded to int8, as in llama.cpp; all others are computed in float32. Keys and values are kept in fp32. Variants:
`exact` rounds no activations, `kv-f16` keeps keys and values in fp16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.inference import runtime as base
from edgeformer.inference.profile import Operation, block_of
from edgeformer.inference.runtime import Options, Session
from edgeformer.spec.task import Task

if TYPE_CHECKING:
    import numpy as np

    from edgeformer.backends.native.model import NativeModel


class NativeSession(Session):
    """One `NativeDecoder`; weights lie in tiles, a copy of the stored ones."""

    def __init__(self, loaded: LoadedModel, options: Options):
        from edgeformer.backends.native.model import NativeDecoder, NativeModel
        from edgeformer.backends.native.record import record

        super().__init__(loaded.spec, options)
        self.kv = "fp16" if options.variant == "kv-f16" else "fp32"
        weights, exact = loaded.require_weights(), options.variant == "exact"
        self.model = NativeModel(record(loaded.spec, self.capacity), weights, self.capacity, exact=exact)
        self.decoder = NativeDecoder(self.model, batch=options.batch, threads=options.threads, cache=self.kv)
        if any(kind.rounds for kind in self.model.kinds):
            self.compute = "int8"

    def _step(self, ids, mask, all_positions):
        logits = self.decoder.step(ids, mask, keep=0 if all_positions else 1, prefix=self.prefix)
        return logits if all_positions else logits[:, -1]

    def _reset(self):
        self.decoder.reset()

    def profile(self, call, before=None):
        """By the engine's own clock, on the calling thread: an instruction's time includes the wait for the other threads."""
        if before is not None:
            before()
        with self.decoder.profiled() as spent:
            call()
        return _operations(self.model, spent)

    def facts(self):
        return {**_facts(self.model), "kv": self.kv}


class NativeEncoderSession(Session):
    """One `NativeEncoder`."""

    def __init__(self, loaded: LoadedModel, options: Options):
        from edgeformer.backends.native.encoder import NativeEncoder
        from edgeformer.backends.native.model import NativeModel
        from edgeformer.backends.native.record import record

        super().__init__(loaded.spec, options)
        weights, exact = loaded.require_weights(), options.variant == "exact"
        self.model = NativeModel(record(loaded.spec, self.capacity), weights, self.capacity, exact=exact)
        self.encoder = NativeEncoder(self.model, slots=loaded.spec.counts_padding, threads=options.threads)
        if any(kind.rounds for kind in self.model.kinds):
            self.compute = "int8"

    def _encode(self, inputs):
        return self.encoder(inputs)

    def profile(self, call, before=None):
        """As `NativeSession.profile`."""
        if before is not None:
            before()
        with self.encoder.profiled() as spent:
            call()
        return _operations(self.model, spent)

    def facts(self):
        return _facts(self.model)


def _operations(model: NativeModel, spent: np.ndarray) -> list[Operation]:
    """Time per part of the model and instruction. spent: nanoseconds of each of the model's instructions."""
    found: dict[tuple[str, str], Operation] = {}
    for instruction, ns in zip(model.code, spent.tolist(), strict=True):
        key = block_of(instruction.path), instruction.op.name.lower()
        operation = found.setdefault(key, Operation(*key))
        operation.ns += ns
        operation.count += 1
    return list(found.values())


def _facts(model: NativeModel) -> dict[str, Any]:
    from edgeformer.backends.native.library import huge_page_mb

    return {"device": "cpu", "weights_mmap": False, "isa": model.isa, "huge_page_mb": huge_page_mb()}


class Runtime(base.Runtime):
    """The native engine. `EDGEFORMER_ISA` chooses an instruction set, `EDGEFORMER_NATIVE` a prebuilt library."""

    opens = "checkpoint"
    also_opens = ("onnx",)
    packages = ("edgeformer",)
    prefixes = True
    variants = ("exact", "kv-f16")

    def unavailable(self):
        from edgeformer.backends.native.library import LIBRARY

        return LIBRARY.missing()

    def refuses(self, spec, options):
        from edgeformer.backends.native.record import record
        from edgeformer.backends.native.values import NotCovered

        if (reason := super().refuses(spec, options)) is not None:
            return reason
        if options.variant == "kv-f16" and spec.task == Task.FEATURE_EXTRACTION:
            return "an encoder has no KV cache"
        try:
            record(spec, 1)
        except NotCovered as e:
            return str(e)
        return None

    def declines(self, manifest, variant):
        """Build the library, if necessary, before anything is measured."""
        from edgeformer.backends.native.library import LIBRARY

        return LIBRARY.cannot_be_built()

    def declines_checkpoint(self, loaded):
        from edgeformer.backends.native.library import LIBRARY

        return LIBRARY.cannot_be_built()

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        loaded = load(source) if isinstance(source, Path) else source
        encodes = loaded.spec.task == Task.FEATURE_EXTRACTION
        return NativeEncoderSession(loaded, options) if encodes else NativeSession(loaded, options)
