"""llama.cpp's `t5`: T5, T5 1.1, Flan-T5 and mT5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.checkpoint.gguf_archs._common import GELU_TABLE, Architecture, rms_epsilon
from edgeformer.errors import CheckpointError
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.mlp import MLP
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.models._inverse import Config, attention_in, ffn_in, model_of, part
from edgeformer.models._names import Names, named
from edgeformer.models._shape import need
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

FURTHEST = 128
"""Distances from here on share a bucket in llama.cpp, whatever the model."""
_UNREAD = {r"^dec\.blk\.0\.cross_attn_rel_b\.weight$": ""}  # never used
NAMES: Names = {"embed.weight": "token_embd.weight", "head.weight": "output.weight"}
for _side, _short in (("encoder", "enc"), ("decoder", "dec")):
    _maps = {
        **{f"attention.{n}": f"attn_{n}" for n in "qkv"},
        "attention.o": "attn_o",
        "attention_norm": "attn_norm",
        **{f"cross.{n}": f"cross_attn_{n}" for n in "qkvo"},
        "cross_norm": "cross_attn_norm",
        "ffn_norm": "ffn_norm",
        **{f"ffn.{n}": f"ffn_{n}" for n in ("gate", "up", "down")},
    }
    NAMES |= {
        f"{_side}.norm.weight": f"{_short}.output_norm.weight",
        f"{_side}.positions.0.table.weight": f"{_short}.blk.0.attn_rel_b.weight",
        **named(_maps, f"{_side}.layers.{{i}}.", f"{_short}.blk.{{i}}."),
    }


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec.

    Raises:
        Unmapped: the decoder is deeper than the encoder.
    """
    model = model_of(spec, EncoderDecoder)
    a, ffn = attention_in(model.encoder.blocks[0]), ffn_in(model.encoder.blocks[0])
    bias = part(a.position, RelativeBias, heads=a.heads)
    need(
        len(model.decoder.blocks) <= len(model.encoder.blocks),
        "llama.cpp loads no decoder with more blocks than its encoder",
    )
    eps = float(getattr(model.encoder.norm, "eps", 1e-6))
    return {
        "context_length": model.context,
        "embedding_length": model.width,
        "feed_forward_length": ffn.hidden if isinstance(ffn, (GLU, MLP)) else 4 * model.width,
        "block_count": len(model.encoder.blocks),
        "decoder_block_count": len(model.decoder.blocks),
        "attention.head_count": a.heads,
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "attention.layer_norm_epsilon": eps,
        "attention.layer_norm_rms_epsilon": eps,
        "attention.relative_buckets_count": bias.buckets,
        "vocab_size": model.vocab,
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file.

    Raises:
        CheckpointError: heads with keys and values of different sizes.
    """
    reader.ignore("attention.layer_norm_epsilon", "vocab_size", "pooling_type")
    heads, width = reader.size("attention.head_count"), reader.size("embedding_length")
    inner, count = reader.size("attention.key_length", width // heads), reader.size("block_count")
    if reader.size("attention.value_length", inner) != inner or reader.size("attention.head_count_kv", heads) != heads:
        raise CheckpointError(f"{reader.file}: T5's keys and values have the same heads and channels")
    gated, tied = reader.has("enc.blk.0.ffn_gate.weight"), not reader.has("output.weight")
    return {
        "model_type": "t5",
        "d_model": width,
        "d_kv": inner,
        "d_ff": reader.size("feed_forward_length"),
        "num_heads": heads,
        "num_layers": count,
        "num_decoder_layers": reader.size("decoder_block_count", count),
        "layer_norm_epsilon": rms_epsilon(reader)["rms_norm_eps"],
        "relative_attention_num_buckets": reader.size("attention.relative_buckets_count"),
        "relative_attention_max_distance": FURTHEST,
        "n_positions": reader.size("context_length"),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": False,  # llama.cpp never scales them
        "is_encoder_decoder": True,
        "decoder_start_token_id": reader.token("decoder_start_token_id"),
        "vocab_size": reader.rows("token_embd.weight"),
    }


def scaled_head(spec: Model) -> Model:
    """T5's first models scale the head's input, and tie the head to the embedding: here the head is a scaled copy."""
    if not isinstance(spec, EncoderDecoder) or spec.logit_scale == 1:
        return spec
    return replace(spec, tied=False, logit_scale=1.0)


def copies(spec: Model) -> dict[str, tuple[str, float]]:
    """The scaled head."""
    if not isinstance(spec, EncoderDecoder) or spec.logit_scale == 1:
        return {}
    return {"head.weight": ("embed.weight" if spec.tied else "head.weight", spec.logit_scale)}


def remarks(reader: Reader) -> list[str]:
    """What may be missing in the file."""
    if reader.has("output.weight") or reader.has("enc.blk.0.ffn_gate.weight"):
        return []
    width = reader.size("embedding_length")
    return [
        f"T5's first models scale the head's input by {width}**-0.5, which llama.cpp doesn't; if this is one, its logits are"
        f" {width**0.5:.3g} times the original's here as well"
    ]


def notes(spec: Model) -> list[str]:
    """What was done about the head."""
    return ["the head is a scaled copy of the embedding: llama.cpp doesn't scale its input"] if copies(spec) else []


ARCHITECTURE = Architecture(
    NAMES,
    metadata,
    config,
    computed=scaled_head,
    copies=copies,
    lacks=notes,
    remarks=remarks,
    ignored=_UNREAD,
    compute=GELU_TABLE,
)
