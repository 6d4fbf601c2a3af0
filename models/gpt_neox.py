"""GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373)."""

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
from edgeformer.models._names import Names, by_group, named
from edgeformer.models._rope import rope
from edgeformer.models.llama import decoder
from edgeformer.spec import Model

PREFIXES = ("gpt_neox.", "")
RENAMED = {  # as mlx-lm writes it
    r"^model\.h\.": "gpt_neox.layers.",
    r"^model\.embed_out\.": "embed_out.",
    r"^model\.(embed_in|final_layer_norm)\.": r"gpt_neox.\1.",
}
IGNORED = {r"\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)$": ""}  # buffers of old checkpoints
TIED = {"embed_out.weight": "embed.weight"}
UNPREFIXED = "embed_out."


def spec(config: HfConfig) -> Decoder:
    """A GPT-NeoX decoder."""
    config.ignore("attention_probs_dropout_prob", "hidden_dropout_prob", "num_steps")  # under other names today
    config.ignore("classifier_dropout", "num_key_value_heads")  # transformers has the latter but doesn't read it
    heads, width = config.size("num_attention_heads", 64), config.size("hidden_size", 6144)
    theta, share = config.number("rotary_emb_base", 10_000.0), config.number("rotary_pct", 0.25)
    # transformers 4.45 and later write it beside rotary_pct, but read the latter
    if config.take("partial_rotary_factor", None) not in (None, share):
        config.expect(partial_rotary_factor=share)
    position, context = rope(config, width // heads, config.size("max_position_embeddings", 2048), theta, partial=share)
    norm, bias = LayerNorm(eps=config.number("layer_norm_eps", 1e-5)), config.flag("attention_bias", True)
    attention = GQA(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        position=position,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
    )
    ffn = MLP(hidden=config.size("intermediate_size", 24_576), act=config.activation("hidden_act", "gelu"))
    kind = ParallelBlock if config.flag("use_parallel_residual", True) else Block
    block = kind(attention=attention, ffn=ffn, norm=norm, dropout=config.number("hidden_dropout", 0.0))
    blocks = [block] * config.layers("num_hidden_layers", 44)
    return decoder(config, blocks, norm, context, dropout=config.number("hidden_dropout", 0.0))


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    attention = attention_of(spec.blocks[0], GQA)
    return (
        named({"embed": "embed_in", "norm": "final_layer_norm", "head": "embed_out"})
        | named(
            {
                "attention_norm": "input_layernorm",
                "ffn_norm": "post_attention_layernorm",
                "attention.o": "attention.dense",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.down": "mlp.dense_4h_to_h",
            },
            "layers.{i}.",
            "layers.{i}.",
        )
        | by_group("layers.{i}.attention", "layers.{i}.attention.query_key_value", 1, attention.head_dim)
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    side = isinstance(model.blocks[0], ParallelBlock)
    block = block_of(model, ParallelBlock if side else Block)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="gelu")
    turned = rotary(a.position, a.head_dim, share="rotary_pct")
    return (
        of_class("gpt_neox", "GPTNeoXForCausalLM")
        | sizes(model)
        | heads(a, dim=False, groups=False)
        | network(ffn)
        | epsilon(model.norm, "layer_norm_eps")
        | turned
        | {
            "rotary_emb_base": turned["rope_theta"],
            "use_parallel_residual": side,
            "attention_bias": a.bias,
            "hidden_dropout": block.dropout,
        }
    )


FAMILY = Family(
    spec, names, config=config, prefixes=PREFIXES, unprefixed=(UNPREFIXED,), ignored=IGNORED, tied=TIED, renamed=RENAMED
)
