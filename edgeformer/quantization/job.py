"""The interface of quantization methods: the job they get, and the base class."""

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
"""Packed codes and float16 scales, as returned by `formats.quantize`."""


@dataclass(frozen=True)
class Job:
    """A running quantization.

    formats: canonical name -> target format; other tensors stay unquantized. ids: calibration tokens int64 [n, T], None for
    methods that need none. partial: the output file; `partial.done` names the tensors that an earlier run finished.
    """

    loaded: LoadedModel
    formats: dict[str, Format]
    ids: np.ndarray | None
    partial: PartialFile
    options: dict[str, Any] = field(default_factory=dict)
    report: Callable[[str], None] = lambda _: None

    def text(self) -> np.ndarray:
        """The calibration tokens; for calibrated methods only."""
        assert self.ids is not None
        return self.ids

    def read(self, name: str) -> Quantized:
        """A tensor's codes and scales from an earlier run."""
        return self.partial.read(name), self.partial.read(name + SCALES)


class Method(ABC):
    """A method for choosing codes and scales."""

    calibrated: ClassVar[bool] = False
    """Whether the method needs calibration text, and torch to run the model on it."""

    def changed(self, loaded: LoadedModel) -> set[str]:
        """Unquantized tensors that the method changes (norms that scales are folded into); they are stored in float32."""
        return set()

    @abstractmethod
    def run(self, job: Job) -> Iterator[Mapping[str, Quantized | np.ndarray]]:
        """Yield every tensor that is quantized or changed, by canonical name, in groups that are written together; tensors in
        `job.partial.done` are skipped."""
