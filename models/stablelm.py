"""StableLM 2 and 3B (Bellagente et al. 2024, arXiv 2402.17834): LayerNorm with a gated FFN, RoPE on a quarter of each head."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.heads_layer_norm import HeadsLayerNorm
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.models import llama
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    block_of,
    epsilon,
    gated_in,
    heads,
    model_of,
    network,
    of_class,
    rotary,
    sizes,
)
from edgeformer.models._names import Names, named
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model
from edgeformer.weights.parts import Stack

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A StableLM decoder."""
    config.ignore("rotary_scaling_factor")
    heads, eps = config.size("num_attention_heads", 32), config.number("layer_norm_eps", 1e-5)
    norm, head_dim = LayerNorm(eps=eps), config.size("hidden_size", 2560) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 4096), partial=0.25)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 32) or heads,
        head_dim=head_dim,
        position=position,
        qk_norm=HeadsLayerNorm(eps=eps) if config.flag("qk_layernorm", False) else None,
        bias=config.flag("use_qkv_bias", False),
        dropout=config.number("attention_dropout", 0.0),
    )
    shape: dict[str, Any] = dict(attention=attention, ffn=gated(config), norm=norm)
    shape |= {"dropout": config.number("hidden_dropout", 0.0)}
    side = config.flag("use_parallel_residual", False)
    block = ParallelBlock(shared_norm=True, **shape) if side else Block(**shape)
    return decoder(config, [block] * config.layers("num_hidden_layers", 32), norm, context)


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    a = attention_of(spec.blocks[0], GQA)
    norms = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    per_head: Names = {
        f"layers.{{i}}.attention.{n}_norm.weight": Stack(
            f"layers.{{i}}.self_attn.{n}_layernorm.norms.{{e}}.weight", count, flat=True
        )
        for n, count in (("q", a.heads), ("k", a.kv_heads))
    }
    return llama.NAMES | named({"norm": "norm"}) | named(norms, "layers.{i}.", "layers.{i}.") | per_head


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    side = isinstance(model.blocks[0], ParallelBlock)
    block = block_of(model, ParallelBlock if side else Block)
    a = attention_in(block)
    return (
        of_class("stablelm", "StableLmForCausalLM")
        | sizes(model)
        | heads(a, dim=False)
        | network(gated_in(model))
        | epsilon(model.norm, "layer_norm_eps")
        | rotary(a.position, a.head_dim, share="partial_rotary_factor")
        | {
            "use_qkv_bias": a.bias,
            "qk_layernorm": a.qk_norm is not None,
            "use_parallel_residual": side,
            "hidden_dropout": block.dropout,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
