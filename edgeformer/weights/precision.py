"""The floating-point types of weights and arithmetic, under the names that formats and libraries give them.

This is the one list: what exports, runtimes and the command line offer is made from it. Our group formats are in `formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads this list before it needs numpy
    import numpy as np


@dataclass(frozen=True)
class FloatType:
    """A type of `itemsize` bytes. `safetensors` is its code there and in GGUF, `library` its name in numpy, torch, MLX and
    configs of transformers, `gguf_file_type` llama.cpp's number of a file of it."""

    name: str
    itemsize: int
    safetensors: str
    library: str
    gguf_file_type: int

    @property
    def numpy(self) -> np.dtype[Any]:
        """numpy's type."""
        import ml_dtypes  # noqa: F401 - which gives numpy bfloat16
        import numpy as np

        return np.dtype(self.library)


FLOAT_TYPES = {
    t.name: t
    for t in (
        FloatType("fp32", 4, "F32", "float32", 0),
        FloatType("fp16", 2, "F16", "float16", 1),
        FloatType("bf16", 2, "BF16", "bfloat16", 32),
    )
}
"""By name."""
