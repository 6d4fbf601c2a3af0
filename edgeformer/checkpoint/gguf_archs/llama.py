"""llama.cpp's `llama`: Llama, Mistral, Mixtral, and everything shaped like them. It rotates adjacent channels."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    EXPERTS,
    LLAMA_NAMES,
    Architecture,
    biases,
    llama_config,
    llama_metadata,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_factors
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.moe import MoE
from edgeformer.models._inverse import Config, ffn_in, mixture_in, model_of
from edgeformer.spec import Model
from edgeformer.weights.binding import NameMap
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    data, model = llama_metadata(spec), model_of(spec, Decoder)
    if not isinstance(ffn_in(model.blocks[0]), MoE):
        return data
    ffn = mixture_in(model)
    return data | {"feed_forward_length": ffn.hidden, "expert_count": ffn.experts, "expert_used_count": ffn.chosen}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    if not reader.has("blk.0.ffn_gate_inp.weight"):
        return llama_config(reader, "llama") | biases(reader)
    counts = {"num_local_experts": reader.size("expert_count"), "num_experts_per_tok": reader.size("expert_used_count")}
    return llama_config(reader, "mixtral") | counts | {"sliding_window": None}


def names(spec: Model) -> NameMap:
    """Canonical name -> GGUF name: experts are stacked."""
    mixed = isinstance(ffn_in(model_of(spec, Decoder).blocks[0]), MoE)
    return LLAMA_NAMES | EXPERTS if mixed else LLAMA_NAMES


ARCHITECTURE = Architecture(
    names, metadata, config, rope_factors=rope_factors, interleaved=("attention.q", "attention.k")
)
