"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867): the 7B, 40B and sequential shapes, with RoPE.

Falcon-RW's ALiBi is refused: its biases are rounded to bfloat16 in the published code, which no other runtime does.
"""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mlp import MLP
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, epsilon, heads, model_of, of_class, part, rotary, sizes
from edgeformer.models._names import Names, by_group, named
from edgeformer.models._rope import rope
from edgeformer.models._shape import hf_activation
from edgeformer.models.llama import decoder
from edgeformer.spec import Layer, Model

PREFIXES = ("transformer.", "")
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """A Falcon decoder."""
    config.expect(alibi=False, num_ln_in_mlp=None)
    config.ignore("apply_residual_connection_post_layernorm")
    heads, width = config.size("num_attention_heads", 71), config.size("hidden_size", 4544)
    config.expect(n_head=heads, n_layer=config.layers("num_hidden_layers", 32))  # older names of these keys
    new, side = config.flag("new_decoder_architecture", False), config.flag("parallel_attn", True)
    single, bias = config.flag("multi_query", True), config.flag("bias", False)
    groups = config.optional_size("num_kv_heads") or heads
    position, context = rope(config, width // heads, config.size("max_position_embeddings", 2048))
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    attention = GQA(
        heads=heads,
        kv_heads=groups if new else 1 if single else heads,
        head_dim=width // heads,
        position=position,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    hidden = config.optional_size("ffn_hidden_size") or 4 * width
    config.expect(ff_factor=hidden // width)
    ffn = MLP(hidden=hidden, act=config.activation("activation", "gelu"), bias=bias)
    dropout = config.number("hidden_dropout", 0.0)
    norms = config.optional_size("num_ln_in_parallel_attn") or (2 if new else 1)
    config.expect(
        num_ln_in_parallel_attn=None if not config.data.get("num_ln_in_parallel_attn") else (norms if new else 1)
    )
    if new or side:
        block: Layer = ParallelBlock(
            attention=attention, ffn=ffn, norm=norm, shared_norm=not new or norms == 1, dropout=dropout
        )
    else:
        block = Block(attention=attention, ffn=ffn, norm=norm, dropout=dropout)
    return decoder(config, [block] * config.layers("num_hidden_layers", 32), norm, context, tied=True)


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    block = spec.blocks[0]
    a, ours, theirs = attention_of(block, GQA), "layers.{i}.attention", "h.{i}.self_attention.query_key_value"
    two = isinstance(block, ParallelBlock) and not block.shared_norm
    return (
        named({"embed": "word_embeddings", "norm": "ln_f", "head": "lm_head"})
        | named(
            {
                "attention_norm": "ln_attn" if two else "input_layernorm",
                "ffn_norm": "ln_mlp" if two else "post_attention_layernorm",
                "attention.o": "self_attention.dense",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.down": "mlp.dense_4h_to_h",
            },
            "layers.{i}.",
            "h.{i}.",
        )
        | by_group(ours, theirs, a.heads // a.kv_heads, a.head_dim)
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    first = model.blocks[0]
    side, a = isinstance(first, ParallelBlock), attention_in(first)
    two = isinstance(first, ParallelBlock) and not first.shared_norm
    block = block_of(model, ParallelBlock if side else Block)
    ffn = part(block.ffn, MLP, hidden=4 * model.width, act="gelu")
    new = side and (two or a.kv_heads not in (1, a.heads))
    return (
        of_class("falcon", "FalconForCausalLM")
        | sizes(model)
        | heads(a, dim=False, groups=False)
        | epsilon(model.norm, "layer_norm_epsilon")
        | rotary(a.position, a.head_dim)
        | {
            "new_decoder_architecture": new,
            "num_kv_heads": a.kv_heads,
            "multi_query": a.kv_heads == 1,
            "parallel_attn": side,
            "alibi": False,
            "bias": a.bias,
            "ffn_hidden_size": ffn.hidden,
            "activation": hf_activation(ffn.act),
            "hidden_dropout": block.dropout,
        }
        | ({"num_ln_in_parallel_attn": 2 if two else 1} if new else {})
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, tied=TIED)
