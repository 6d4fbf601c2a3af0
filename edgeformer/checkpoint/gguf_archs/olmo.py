"""llama.cpp's `olmo`: Llama with norms without parameters, and clipped projections. It rotates adjacent channels."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    LLAMA_NAMES,
    Architecture,
    first_attention,
    head_dim,
    llama_metadata,
    shape_config,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_of
from edgeformer.models._inverse import Config
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    clip = first_attention(spec).clip
    data = {key: value for key, value in llama_metadata(spec).items() if not key.endswith("epsilon")}
    return (
        data | {"attention.layer_norm_epsilon": 1e-5} | ({} if clip is None else {"attention.clamp_kqv": float(clip)})
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    reader.ignore("attention.layer_norm_epsilon")
    config = shape_config(reader, "olmo")
    dim = head_dim(reader, config["hidden_size"], config["num_attention_heads"])
    return config | rope_of(reader, dim) | {"clip_qkv": reader.number("attention.clamp_kqv", 0.0) or None}


ARCHITECTURE = Architecture(LLAMA_NAMES, metadata, config, interleaved=("attention.q", "attention.k"))
