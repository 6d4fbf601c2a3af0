"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173): LayerNorm, biases, a plain FFN, RoPE and grouped-query attention."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    block_of,
    epsilon,
    heads,
    listed_windows,
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
    | named({"norm": "norm"})
    | named(
        {
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "ffn.up": "mlp.c_fc",
            "ffn.down": "mlp.c_proj",
        },
        "layers.{i}.",
        "layers.{i}.",
    )
)


def spec(config: HfConfig) -> Decoder:
    """A StarCoder2 decoder."""
    config.expect(mlp_type="default", norm_type="layer_norm", scale_attn_weights=True)
    config.ignore(
        "activation_function", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"
    )  # GPT-BigCode's
    eps = config.number("norm_epsilon", 1e-5)
    config.expect(layer_norm_epsilon=eps)
    heads, norm = config.size("num_attention_heads", 24), LayerNorm(eps=eps)
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 3072) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 4096))
    bias = config.flag("use_bias", True)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 2) or heads,
        head_dim=head_dim,
        position=position,
        mask=Mask(window=config.optional_size("sliding_window")),
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    act = config.activation("hidden_act", "gelu_pytorch_tanh")
    ffn = MLP(hidden=config.size("intermediate_size", 12_288), act=act, bias=bias)
    block = Block(attention=attention, ffn=ffn, norm=norm, dropout=config.number("residual_dropout", 0.0))
    blocks, dropout = [block] * config.layers("num_hidden_layers", 30), config.number("embedding_dropout", 0.0)
    return decoder(config, blocks, norm, context, tied=True, dropout=dropout)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block, (window, _) = block_of(model, Block), listed_windows(model)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="gelu_tanh")
    return (
        of_class("starcoder2", "Starcoder2ForCausalLM")
        | sizes(model)
        | heads(a, dim=False)
        | network(ffn)
        | epsilon(model.norm, "norm_epsilon")
        | rotary(a.position, a.head_dim)
        | {
            "use_bias": a.bias,
            "sliding_window": window,
            "residual_dropout": block.dropout,
            "embedding_dropout": model.dropout,
        }
    )


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
