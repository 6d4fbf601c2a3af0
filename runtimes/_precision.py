"""Weights as a precision stores them, so that a reference has the same bits as the artefact it judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

_STORED = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


class rounded(Mapping[str, Any]):
    """canonical name -> float32 array holding the values that `precision` can store. Lazy, like its source."""

    def __init__(self, weights: Mapping[str, Any], precision: str):
        self.weights, self.dtype = weights, _STORED[precision]

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.weights[name]).astype(self.dtype, copy=False).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
