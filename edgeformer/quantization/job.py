"""What a method is given, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.quantization.partial import PartialFile
from edgeformer.weights.formats import SCALES, Format

Quantized = tuple[np.ndarray, np.ndarray]
"""Packed codes and float16 scales, as `formats.quantize` gives them."""


@dataclass(frozen=True)
class Job:
    """A quantization under way.

    formats: canonical name -> the format it is to have; names that aren't in it stay as they are. ids: calibration tokens
    int64 [n, T], None for methods that need none. done: tensors that an earlier run has made, readable from `partial`.
    """

    loaded: LoadedModel
    formats: dict[str, Format]
    ids: np.ndarray | None
    partial: PartialFile
    options: dict[str, Any] = field(default_factory=dict)
    report: Callable[[str], None] = lambda _: None

    def text(self) -> np.ndarray:
        """The calibration tokens, of a method that has them."""
        assert self.ids is not None
        return self.ids

    def read(self, name: str) -> Quantized:
        """What an earlier run made of a tensor."""
        return self.partial.read(name), self.partial.read(name + SCALES)


class Method(ABC):
    """A way to choose codes and scales."""

    calibrated: ClassVar[bool] = False
    """Whether it needs text, and torch to run the model on it."""

    def changed(self, loaded: LoadedModel) -> set[str]:
        """Unquantized tensors that it changes (norms that scales are folded into); they are stored in float32."""
        return set()

    @abstractmethod
    def run(self, job: Job) -> Iterator[Mapping[str, Quantized | np.ndarray]]:
        """Every tensor it quantizes or changes, by canonical name, in pieces that are written as one; those that `job.partial`
        has are left out."""
