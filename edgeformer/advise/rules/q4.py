"""edgeformer's own 4- and 8-bit formats: groups of 32 inputs."""

from __future__ import annotations

from collections.abc import Iterator

from edgeformer.spec import Model
from edgeformer.weights.formats import GROUP
from edgeformer.weights.rounding import quantizable

TARGET = "q4 and q8"


def remarks(spec: Model) -> Iterator[str]:
    """Remarks on a spec."""
    odd = sorted({shape[-1] for shape in quantizable(spec).values() if shape[-1] % GROUP})
    if odd:
        yield (
            f"linear layers with {', '.join(map(str, odd))} inputs can't be split into groups of {GROUP}: leave them unquantized"
            " (--keep)"
        )
