"""llama.cpp's `starcoder`: GPT-2 with one key head."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs import gpt2
from edgeformer.checkpoint.gguf_archs._common import GELU_TABLE, Architecture, first_attention, grouped_qkv, names_with
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name: q, k and v side by side."""
    a = first_attention(spec)
    qkv = grouped_qkv(a)
    return names_with() | qkv | {"position_embed.table.weight": "position_embd.weight"}


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return gpt2.metadata(spec) | {"attention.head_count_kv": first_attention(spec).kv_heads}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return gpt2.gpt2_like(reader, "gpt_bigcode") | {"multi_query": reader.size("attention.head_count_kv", 1) == 1}


ARCHITECTURE = Architecture(names, metadata, config, compute=GELU_TABLE)
