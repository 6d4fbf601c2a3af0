"""llama.cpp's `minicpm`: Llama with multipliers that depend on depth and width. It rotates adjacent channels."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import LLAMA_NAMES, Architecture, llama_config, llama_metadata
from edgeformer.checkpoint.gguf_archs._rope import rope_factors
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, block_of, model_of, reciprocal, solved
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    return llama_metadata(spec) | {
        "embedding_scale": float(model.embed_scale),
        "residual_scale": float(block_of(model, Block).residual_scale),
        "logit_scale": float(solved(lambda x: 1 / x, model.logit_scale, reciprocal(model.logit_scale))),
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = llama_config(reader, "minicpm", own_head_dim=False, longrope=True)
    depth = reader.number("residual_scale") * config["num_hidden_layers"] ** 0.5
    base = round(config["hidden_size"] / reader.positive("logit_scale"))
    return config | {
        "scale_emb": reader.number("embedding_scale"),
        "scale_depth": float(f"{depth:.6g}"),
        "dim_model_base": base,
    }


ARCHITECTURE = Architecture(
    LLAMA_NAMES, metadata, config, rope_factors=rope_factors, interleaved=("attention.q", "attention.k")
)
