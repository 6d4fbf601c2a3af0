"""Weights rounded to a storage precision, so that a reference uses the same bits as the artefact that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgeformer.weights.precision import FLOAT_TYPES


class rounded(Mapping[str, Any]):
    """Canonical name -> float32 array, rounded to the values that `precision` can store. Lazy, like its source."""

    def __init__(self, weights: Mapping[str, Any], precision: str):
        self.weights, self.dtype = weights, FLOAT_TYPES[precision].numpy

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.weights[name]).astype(self.dtype, copy=False).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
