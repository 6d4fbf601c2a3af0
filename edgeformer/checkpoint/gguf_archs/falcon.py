"""llama.cpp's `falcon`: one or two norms, then attention and feed-forward network in parallel."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    GELU_TABLE,
    Architecture,
    even_heads,
    first_attention,
    grouped_qkv,
    layer_epsilon,
    names_with,
    plain_metadata,
    shape_config,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_of
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.models._inverse import Config
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name: of two norms, the feed-forward network's is the first."""
    a, block = first_attention(spec), spec.blocks[0]
    qkv = grouped_qkv(a)
    if isinstance(block, ParallelBlock) and not block.shared_norm:
        return names_with(attention_norm="attn_norm_2", ffn_norm="attn_norm") | qkv
    return names_with() | qkv


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return plain_metadata(spec)


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "falcon")
    heads, groups = config["num_attention_heads"], config.pop("num_key_value_heads")
    two = reader.has("blk.0.attn_norm_2.weight")
    new = two or groups not in (1, heads)
    del config["hidden_act"]
    hidden = config.pop("intermediate_size")
    return (
        config
        | layer_epsilon(reader, "layer_norm_epsilon")
        | rope_of(reader, even_heads(reader, config))
        | {
            "ffn_hidden_size": hidden,
            "activation": "gelu_new",
            "new_decoder_architecture": new,
            "num_kv_heads": groups,
            "multi_query": groups == 1,
            "parallel_attn": True,
            **({"num_ln_in_parallel_attn": 2 if two else 1} if new else {}),
        }
    )


ARCHITECTURE = Architecture(names, metadata, config, compute=GELU_TABLE)
