"""The floating-point types of weights and arithmetic, under the names that formats and libraries give them.

This is the only list: exports, runtimes and the command line derive their choices from it. Group formats are in `formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads this list before it needs numpy
    import numpy as np


@dataclass(frozen=True)
class FloatType:
    """A type of `itemsize` bytes. `safetensors` is its name there and in GGUF, `library` its name in numpy, torch, MLX and
    transformers' configs, `gguf_file_type` llama.cpp's number for a file of this type."""

    name: str
    itemsize: int
    safetensors: str
    library: str
    gguf_file_type: int

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype."""
        import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy
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
"""The types by name."""
