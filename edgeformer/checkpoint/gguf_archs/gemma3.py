"""llama.cpp's `gemma3`: five sliding-window layers per full one, and a RoPE theta for each kind."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    GELU_TABLE,
    Architecture,
    head_keys,
    llama_config,
    names_with,
    norm_keys,
    shape_keys,
    shifted_norms,
    window_of,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_keys
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, attentions_in, gated_in, model_of
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = shifted_norms(names_with(attention_out_norm="post_attention_norm", ffn_out_norm="post_ffw_norm"))


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    full = next((a for a in attentions_in(model) if a.mask.window is None), attentions_in(model)[0])
    shape = shape_keys(spec, gated_in(model).hidden) | head_keys(full) | norm_keys(model.norm)
    return (
        shape | rope_keys(full.position, full.head_dim) | {"attention.sliding_window": window_of(spec) or model.context}
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = llama_config(reader, "gemma3_text")
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["head_dim"],
        "rope_local_base_freq": 10_000.0,
        "sliding_window": reader.size("attention.sliding_window"),
        "sliding_window_pattern": 6,
        "final_logit_softcapping": reader.number("final_logit_softcapping", 0.0) or None,
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
