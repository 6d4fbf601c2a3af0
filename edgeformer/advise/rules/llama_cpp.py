"""llama.cpp: whether it supports the architecture, and which widths its K-quants can't use."""

from __future__ import annotations

from collections.abc import Iterator

from edgeformer.errors import EdgeformerError
from edgeformer.exporters.gguf.fitting import architecture
from edgeformer.spec import Linear, Model, leaves

TARGET = "llama.cpp (GGUF)"
K_BLOCK = 256


def remarks(spec: Model) -> Iterator[str]:
    """Remarks on a spec."""
    try:
        architecture(spec)
    except EdgeformerError as e:
        yield str(e)
        return
    odd = sorted({leaf.inputs for _, leaf in leaves(spec) if isinstance(leaf, Linear) and leaf.inputs % K_BLOCK})
    if odd:
        yield (
            f"widths {', '.join(map(str, odd))} are not multiples of {K_BLOCK}: llama.cpp's own K-quants fall back to wider"
            " formats there (edgeformer's q4 and q8 don't)"
        )
