"""llama.cpp's `qwen2`: biases on q, k and v."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    LLAMA_NAMES,
    Architecture,
    llama_config,
    llama_metadata,
    rope_factors,
)
from edgeformer.models._shape import need
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec.

    Raises:
        Unmapped: the spec doesn't fit this architecture.
    """
    data, attention, ffn = llama_metadata(spec)
    need(attention.qk_norm is None, "queries and keys are normalised")
    need(attention.bias and not attention.output_bias and not ffn.bias, "biases are not on exactly q, k and v")
    need(
        attention.heads * attention.head_dim == spec.width,
        "heads · head_dim is not the width, which llama.cpp's qwen2 requires",
    )
    need(rope_factors(spec) is None, "llama.cpp's qwen2 has no RoPE factors (llama3 scaling)")
    return data


def config(reader: Reader) -> dict[str, Any]:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "qwen2")


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config, rope_factors=rope_factors)
