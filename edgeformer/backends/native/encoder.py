"""An encoder in the native engine: batches of texts as rows of real tokens only."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping

import numpy as np

from edgeformer.backends.native.library import pointer
from edgeformer.backends.native.model import NativeModel
from edgeformer.errors import InputError


class NativeEncoder:
    """Runs batches of texts. Padding is left out of all computation: texts of different lengths cost no more than their tokens.

    Args:
        model: an encoder's program with its weights.
        slots: whether positions count padding, too (`Encoder.counts_padding`).
        threads: compute threads.
    """

    def __init__(self, model: NativeModel, *, slots: bool, threads: int = 1):
        self.model = model
        self.handle = ctypes.c_void_p()
        model.library.call("ef_encoder_new", model.handle, model.capacity, slots, threads, ctypes.byref(self.handle))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.model.library.do("ef_encoder_delete", self.handle)

    @contextlib.contextmanager
    def profiled(self) -> Iterator[np.ndarray]:
        """Yields int64 nanoseconds of each of `model.code`'s instructions, summed over the calls inside."""
        spent = np.zeros(len(self.model.code), np.int64)
        self.model.library.do("ef_encoder_profile", self.handle, pointer(spent))
        try:
            yield spent
        finally:
            self.model.library.do("ef_encoder_profile", self.handle, None)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs, float32: rows per token are [B, T, width], zeros where padded; rows per text [B, width].

        inputs: `input_ids`, `attention_mask` and, for a model with several token types, `token_type_ids`, int64 [B, T]. A text
        without a token gets zeros.
        """
        ids = np.ascontiguousarray(inputs["input_ids"], np.int64)
        mask = np.ascontiguousarray(inputs["attention_mask"], np.int64)
        types = inputs.get("token_type_ids")
        types = None if types is None else np.ascontiguousarray(types, np.int64)
        if ids.ndim != 2 or mask.shape != ids.shape or (types is not None and types.shape != ids.shape):
            raise InputError("input_ids, attention_mask and token_type_ids must have one shape, [batch, tokens]")
        made = {
            name: np.empty((*(ids.shape[:1] if buffer.kept else ids.shape), buffer.width), np.float32)
            for name, buffer in self.model.outputs.items()
        }
        outs = (ctypes.c_void_p * len(made))(*map(pointer, made.values()))
        arrays = pointer(ids), pointer(mask), pointer(types)
        self.model.library.call("ef_encoder_run", self.handle, *arrays, *ids.shape, ctypes.addressof(outs))
        return made
