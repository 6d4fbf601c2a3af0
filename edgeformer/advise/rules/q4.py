"""edgeformer's own 4- and 8-bit formats: groups of 32 inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgeformer.spec import Model, Stacked, leaves, tensors
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
    shapes = tensors(spec)
    stacked = sum(math.prod(shapes[f"{path}.weight"]) for path, leaf in leaves(spec) if isinstance(leaf, Stacked))
    total = sum(map(math.prod, shapes.values()))
    if stacked > 0.05 * total:
        yield f"{stacked / total:.0%} of the weights are stacked tensors (experts, or latent attention's), which stay unquantized"
