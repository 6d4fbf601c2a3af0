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
from edgeformer.errors import CheckpointError
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, attentions_in, gated_in, model_of
from edgeformer.models._names import Names
from edgeformer.models._windows import FULL, SLIDING
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

NAMES: Names = shifted_norms(names_with(attention_out_norm="post_attention_norm", ffn_out_norm="post_ffw_norm"))


_EVERY, _THETA = 6, 10_000.0
"""Full attention in every n-th layer, and the base of RoPE in the others, of files that say neither."""
_OF_27B = 62
"""The number of layers that makes llama.cpp scale scores by the width of a head's share of the model, as Gemma 3 27B does."""


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    attentions = attentions_in(model)
    full = next((a for a in attentions if a.mask.window is None), attentions[0])
    local = next((a for a in attentions if a.mask.window is not None), full)
    shape = shape_keys(spec, gated_in(model).hidden) | head_keys(full) | norm_keys(model.norm)
    keys = (
        shape | rope_keys(full.position, full.head_dim) | {"attention.sliding_window": window_of(spec) or model.context}
    )
    theta = rope_keys(local.position, local.head_dim)["rope.freq_base"]
    every = next((i + 1 for i, a in enumerate(attentions) if a.mask.window is None), _EVERY)
    return (
        keys
        | ({} if theta == _THETA else {"rope.freq_base_swa": theta})
        | ({} if every in (1, _EVERY) else {"attention.sliding_window_pattern": every})
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = llama_config(reader, "gemma3_text")
    count, every = config["num_hidden_layers"], reader.listed("attention.sliding_window_pattern", _EVERY)
    types = every if isinstance(every, list) else [bool((i + 1) % every) for i in range(count)]
    if len(types) < count:
        raise CheckpointError(
            f"{reader.file}: attention.sliding_window_pattern has {len(types)} entries for {count} layers"
        )
    share = config["hidden_size"] // config["num_attention_heads"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": share if count == _OF_27B else config["head_dim"],
        "rope_local_base_freq": reader.positive("rope.freq_base_swa", _THETA),
        "sliding_window": reader.size("attention.sliding_window"),
        "layer_types": [SLIDING if slides else FULL for slides in types[:count]],
        "final_logit_softcapping": reader.number("final_logit_softcapping", 0.0) or None,
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=GELU_TABLE)
