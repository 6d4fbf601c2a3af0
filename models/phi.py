"""Phi 1, 1.5 and 2 (Li et al. 2023, arXiv 2309.05463): attention and FFN in parallel, RoPE on part of each head."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mlp import MLP
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    block_of,
    epsilon,
    heads,
    model_of,
    network,
    of_class,
    part,
    rotary,
    sizes,
)
from edgeformer.models._names import named
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]

NAMES = (
    llama.NAMES
    | named({"norm": "final_layernorm", "head": "lm_head"})
    | named(
        {
            "attention_norm": "input_layernorm",
            "attention.o": "self_attn.dense",
            "attention.q_norm": "self_attn.q_layernorm",
            "attention.k_norm": "self_attn.k_layernorm",
            "ffn.up": "mlp.fc1",
            "ffn.down": "mlp.fc2",
        },
        "layers.{i}.",
        "layers.{i}.",
    )
)


def spec(config: HfConfig) -> Decoder:
    """A Phi decoder."""
    heads, norm = config.size("num_attention_heads", 32), LayerNorm(eps=config.number("layer_norm_eps", 1e-5))
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 2048) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 2048), partial=0.5)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        position=position,
        qk_norm=norm if config.flag("qk_layernorm", False) else None,
        bias=True,
        output_bias=True,
        dropout=config.number("attention_dropout", 0.0),
    )
    ffn = MLP(hidden=config.size("intermediate_size", 8192), act=config.activation("hidden_act", "gelu_new"))
    dropout = config.number("resid_pdrop", 0.0)
    block = ParallelBlock(attention=attention, ffn=ffn, norm=norm, shared_norm=True, dropout=dropout)
    tied = config.flag("tie_word_embeddings", False)
    blocks = [block] * config.layers("num_hidden_layers", 24)
    return decoder(config, blocks, norm, context, head_bias=not tied, dropout=config.number("embd_pdrop", 0.0))


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block = block_of(model, ParallelBlock)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="gelu_tanh")
    return (
        of_class("phi", "PhiForCausalLM")
        | sizes(model)
        | heads(a, dim=False)
        | network(ffn)
        | epsilon(model.norm, "layer_norm_eps")
        | rotary(a.position, a.head_dim, share="partial_rotary_factor")
        | {"qk_layernorm": a.qk_norm is not None, "resid_pdrop": block.dropout, "embd_pdrop": model.dropout}
    )


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
