"""llama.cpp's `olmoe`: many small experts, queries and keys normalised over all heads."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import EXPERTS, LLAMA_NAMES, Architecture, llama_config, llama_metadata
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, mixture_in, model_of
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    ffn = mixture_in(model_of(spec, Decoder))
    counts = {"expert_count": ffn.experts, "expert_used_count": ffn.chosen}
    return llama_metadata(spec) | counts | {"feed_forward_length": ffn.hidden}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = llama_config(reader, "olmoe", own_head_dim=False)
    return config | {
        "num_key_value_heads": config["num_attention_heads"],  # llama.cpp normalises keys over the whole width
        "num_experts": reader.size("expert_count"),
        "num_experts_per_tok": reader.size("expert_used_count"),
        "norm_topk_prob": False,
    }


ARCHITECTURE = Architecture(LLAMA_NAMES | EXPERTS, metadata, config)
