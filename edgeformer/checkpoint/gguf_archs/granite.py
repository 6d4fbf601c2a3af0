"""llama.cpp's `granite`: Llama with multipliers. It rotates adjacent channels."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    LLAMA_NAMES,
    Architecture,
    biases,
    first_attention,
    llama_config,
    llama_metadata,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_factors
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, block_of, model_of, reciprocal, solved
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    return llama_metadata(spec) | {
        "attention.scale": a.head_dim**-0.5 if a.scale is None else a.scale,
        "embedding_scale": float(model.embed_scale),
        "residual_scale": float(block_of(model, Block).residual_scale),
        "logit_scale": float(solved(lambda x: 1 / x, model.logit_scale, reciprocal(model.logit_scale))),
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return (
        llama_config(reader, "granite", own_head_dim=False)
        | biases(reader)
        | {
            "attention_multiplier": reader.number("attention.scale"),
            "embedding_multiplier": reader.number("embedding_scale"),
            "residual_multiplier": reader.number("residual_scale"),
            "logits_scaling": reader.number("logit_scale"),
        }
    )


ARCHITECTURE = Architecture(
    LLAMA_NAMES, metadata, config, rope_factors=rope_factors, interleaved=("attention.q", "attention.k")
)
