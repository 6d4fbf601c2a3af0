"""Command R (Cohere 2024): attention and FFN in parallel after one norm without bias, RoPE on adjacent channels."""

from __future__ import annotations

from typing import Any

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
from edgeformer.models._inverse import (
    attention_in,
    epsilon,
    gated_in,
    heads,
    model_of,
    network,
    of_class,
    rotary,
    sizes,
)
from edgeformer.models._names import Names
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model
from edgeformer.weights.parts import Flat

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec"]


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


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a = attention_in(model.blocks[0])
    return (
        of_class("cohere", "CohereForCausalLM")
        | sizes(model)
        | heads(a, dim=False)
        | network(gated_in(model))
        | epsilon(model.norm, "layer_norm_eps")
        | rotary(a.position, a.head_dim, kind=RopeInterleaved)
        | {"attention_bias": a.bias, "use_qk_norm": a.qk_norm is not None, "logit_scale": model.logit_scale}
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
