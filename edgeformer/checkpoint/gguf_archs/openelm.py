"""llama.cpp's `openelm`: heads and widths that grow with depth."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import Architecture, names_with, norm_keys
from edgeformer.checkpoint.gguf_archs._rope import rope_keys
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.models._inverse import Config, attentions_in, ffn_in, model_of, part
from edgeformer.models._names import Names
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import Rows


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name. Sizes differ from layer to layer."""
    out: Names = dict(names_with())
    for i, a in enumerate(attentions_in(spec)):
        q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        for n, start, stop in (("q", 0, q), ("k", q, q + kv), ("v", q + kv, q + 2 * kv)):
            out[f"layers.{i}.attention.{n}.weight"] = Rows(f"blk.{i}.attn_qkv.weight", start, stop, q + 2 * kv)
    return out


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    attentions = attentions_in(model)
    a = attentions[0]
    hidden = [part(ffn_in(block), GLU, hidden=4 * model.width, act="silu").hidden for block in model.blocks]
    return {
        "block_count": len(model.blocks),
        "context_length": model.context,
        "embedding_length": model.width,
        "feed_forward_length": hidden,
        "attention.head_count": [x.heads for x in attentions],
        "attention.head_count_kv": [x.kv_heads for x in attentions],
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "vocab_size": model.vocab,
        **norm_keys(model.norm),
        **rope_keys(a.position, a.head_dim),
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    count, width, dim = reader.size("block_count"), reader.size("embedding_length"), reader.size("attention.key_length")
    reader.ignore("vocab_size", "attention.value_length", "rope.dimension_count", "attention.layer_norm_rms_epsilon")
    return {
        "model_type": "openelm",
        "num_transformer_layers": count,
        "model_dim": width,
        "head_dim": dim,
        "vocab_size": reader.rows("token_embd.weight"),
        "max_context_length": reader.size("context_length"),
        "rope_freq_constant": reader.number("rope.freq_base", 10_000.0),
        "num_query_heads": reader.sizes("attention.head_count", count),
        "num_kv_heads": reader.sizes("attention.head_count_kv", count),
        "ffn_multipliers": [hidden / width for hidden in reader.sizes("feed_forward_length", count)],
        "ffn_dim_divisor": 1,
        "share_input_output_layers": True,
    }


ARCHITECTURE = Architecture(names, metadata, config)
