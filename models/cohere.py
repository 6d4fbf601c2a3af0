"""Command R (Cohere 2024): attention and FFN side by side after one norm without bias, neighbouring channels rotated."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.heads_layer_norm import HeadsLayerNorm
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._names import Names
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.parts import Flat
from edgeformer.spec import Model

__all__ = ["IGNORED", "PREFIXES", "TIED", "names", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Cohere decoder."""
    heads, eps = config.size("num_attention_heads", 64), config.number("layer_norm_eps", 1e-5)
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 8192) // heads
    longest = config.size("max_position_embeddings", 8192)
    position, context = rope(config, head_dim, longest, theta=500_000.0, kind=RopeInterleaved)
    norm, bias = LayerNorm(eps=eps, bias=False), config.flag("attention_bias", False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        position=position,
        qk_norm=HeadsLayerNorm(eps=eps) if config.flag("use_qk_norm", False) else None,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    block = ParallelBlock(attention=attention, ffn=gated(config), norm=norm, shared_norm=True)
    blocks, scale = [block] * config.size("num_hidden_layers", 40), config.number("logit_scale", 0.0625)
    return decoder(config, blocks, norm, context, tied=True, logit_scale=scale)


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    a: Any = spec.blocks[0].attention  # type: ignore[attr-defined]
    norms: Names = {
        f"layers.{{i}}.attention.{n}_norm.weight": Flat(f"layers.{{i}}.self_attn.{n}_norm.weight", count)
        for n, count in (("q", a.heads), ("k", a.kv_heads))
    }
    return llama.NAMES | norms
