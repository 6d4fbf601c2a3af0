"""llama.cpp's `gemma2`: norms before and after, soft caps, sliding windows in every second layer."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    GELU_TABLE,
    Architecture,
    first_attention,
    llama_config,
    llama_metadata,
    names_with,
    shifted_norms,
    window_of,
)
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, model_of
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = shifted_norms(names_with(attention_out_norm="post_attention_norm", ffn_out_norm="post_ffw_norm"))


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    return llama_metadata(spec) | {
        "attn_logit_softcapping": float(a.softcap or 0.0),
        "final_logit_softcapping": float(model.logit_softcap or 0.0),
        "attention.sliding_window": window_of(spec) or model.context,
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = llama_config(reader, "gemma2")
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": config["head_dim"],
        "attn_logit_softcapping": reader.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": reader.number("final_logit_softcapping", 30.0),
        "sliding_window": reader.size("attention.sliding_window", 4096),
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
