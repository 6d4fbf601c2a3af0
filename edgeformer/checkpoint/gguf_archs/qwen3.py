"""llama.cpp's `qwen3`: RMSNorm on each query and key head, no biases."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    LLAMA_NAMES,
    Architecture,
    llama_config,
    llama_metadata,
    rope_factors,
)
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._shape import need
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec.

    Raises:
        Unmapped: the spec doesn't fit this architecture.
    """
    data, attention, ffn = llama_metadata(spec)
    norm = RMSNorm(eps=data["attention.layer_norm_rms_epsilon"])
    need(attention.qk_norm == norm, "queries and keys have no RMSNorm with the blocks' epsilon")
    need(not attention.bias and not attention.output_bias and not ffn.bias, "the spec has biases")
    need(rope_factors(spec) is None, "llama.cpp's qwen3 has no RoPE factors (llama3 scaling)")
    return data


def config(reader: Reader) -> dict[str, Any]:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "qwen3")


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config, rope_factors=rope_factors)
