"""llama.cpp's `starcoder`: GPT-2 with one key head."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs import gpt2
from edgeformer.checkpoint.gguf_archs._common import GELU_TABLE, Architecture, first_attention, names_with
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config
from edgeformer.models._names import Names, side_by_side
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name: q, k and v side by side."""
    a = first_attention(spec)
    sizes = {"q": a.heads * a.head_dim, "k": a.kv_heads * a.head_dim, "v": a.kv_heads * a.head_dim}
    qkv = side_by_side("layers.{i}.attention", "blk.{i}.attn_qkv", sizes)
    return names_with() | qkv | {"position_embed.table.weight": "position_embd.weight"}


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    return gpt2.metadata(spec) | {"attention.head_count_kv": first_attention(spec).kv_heads}


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    return gpt2.gpt2_like(reader, "gpt_bigcode") | {"multi_query": reader.size("attention.head_count_kv", 1) == 1}


ARCHITECTURE = Architecture(names, metadata, config, compute=GELU_TABLE)
