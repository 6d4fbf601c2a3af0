"""Command R (Cohere 2024): attention and FFN in parallel after one norm without bias, RoPE on adjacent channels."""

from __future__ import annotations

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.heads_layer_norm import HeadsLayerNorm
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models import llama
from edgeformer.models._attention import attention_of, rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._names import Names
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.weights.parts import Flat

__all__ = ["IGNORED", "PREFIXES", "TIED", "names", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Cohere decoder."""
    eps = config.number("layer_norm_eps", 1e-5)
    norm = LayerNorm(eps=eps, bias=False)
    qk_norm = HeadsLayerNorm(eps=eps) if config.flag("use_qk_norm", False) else None
    attention, context = rotary_attention(config, 64, 8192, theta=500_000.0, kind=RopeInterleaved, qk_norm=qk_norm)
    block = ParallelBlock(attention=attention, ffn=gated(config), norm=norm, shared_norm=True)
    blocks, scale = [block] * config.layers("num_hidden_layers", 40), config.number("logit_scale", 0.0625)
    return decoder(config, blocks, norm, context, tied=True, logit_scale=scale)


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    a = attention_of(spec.blocks[0], GQA)
    norms: Names = {
        f"layers.{{i}}.attention.{n}_norm.weight": Flat(f"layers.{{i}}.self_attn.{n}_norm.weight", count)
        for n, count in (("q", a.heads), ("k", a.kv_heads))
    }
    return llama.NAMES | norms


FAMILY = Family(spec, names, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
