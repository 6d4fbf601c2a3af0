"""llama.cpp's `llama`: Llama, Mistral, and everything shaped like them. It rotates adjacent channels."""

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
    data, attention, _ = llama_metadata(spec)
    need(attention.qk_norm is None, "queries and keys are normalised")
    need(attention.bias == attention.output_bias, "q, k, v have biases and o has none, or the reverse")
    return data


def config(reader: Reader) -> dict[str, Any]:
    """The Hugging Face config of a GGUF file."""
    bias = {"attention_bias": reader.has("blk.0.attn_q.bias"), "mlp_bias": reader.has("blk.0.ffn_up.bias")}
    return {**llama_config(reader, "llama"), **bias}


ARCHITECTURE = Architecture(
    LLAMA_NAMES, metadata, config, rope_factors=rope_factors, interleaved=("attention.q", "attention.k")
)
