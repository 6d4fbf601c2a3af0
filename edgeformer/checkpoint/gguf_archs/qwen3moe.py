"""llama.cpp's `qwen3moe`: Qwen3 with experts in every block."""

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
    return llama_metadata(spec) | {
        "feed_forward_length": 4 * ffn.hidden,
        "expert_feed_forward_length": ffn.hidden,
        "expert_count": ffn.experts,
        "expert_used_count": ffn.chosen,
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return llama_config(reader, "qwen3_moe") | {
        "moe_intermediate_size": reader.size("expert_feed_forward_length"),
        "num_experts": reader.size("expert_count"),
        "num_experts_per_tok": reader.size("expert_used_count"),
        "norm_topk_prob": True,  # llama.cpp always does
    }


ARCHITECTURE = Architecture(LLAMA_NAMES | EXPERTS, metadata, config)
