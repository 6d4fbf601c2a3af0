"""A stored tensor as the canonical tensors that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeformer.errors import ExportError
from edgeformer.weights.binding import Source
from edgeformer.weights.parts import Cut


@dataclass(frozen=True)
class Held:
    """A tensor to store, and the canonical tensors that it holds."""

    members: tuple[tuple[Cut, Source], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored tensor."""
        cut, source = self.members[0]
        return cut.whole(source.shape)

    @property
    def whole_rows(self) -> bool:
        """Whether rows stay intact, so that codes and scales can be placed as weights are."""
        return all(cut.whole_rows for cut, _ in self.members)

    def assembled(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The members' arrays, of one dtype, in their places."""
        if len(parts) == 1 and self.members[0][0].plain:
            return parts[0]
        cut = self.members[0][0]
        whole = np.empty(cut.whole(parts[0].shape), parts[0].dtype)
        for (cut, _), x in zip(self.members, parts, strict=True):
            cut.put(whole, x)
        return whole

    def read(self, dtype: np.dtype) -> np.ndarray:
        """The weights in this dtype.

        Raises:
            ExportError: a weight exceeds fp16's range.
        """
        return self.assembled([cast_weights(source.read(), dtype) for _, source in self.members])


def cast_weights(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Weights in this dtype.

    Raises:
        ExportError: one exceeds fp16's range.
    """
    if dtype == np.float16 and max(-float(x.min(initial=0)), float(x.max(initial=0))) > 65504:
        raise ExportError("a weight exceeds fp16's largest value (65504); use --precision fp32 or bf16")
    return x.astype(dtype, copy=False)
