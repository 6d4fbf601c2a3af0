"""GPT-Neo (Black et al. 2021): GPT-2 with unscaled scores and sliding windows in every second layer."""

from __future__ import annotations

from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, epsilon, listed_windows, model_of, of_class, part, sizes
from edgeformer.models._names import named
from edgeformer.models._shape import hf_activation
from edgeformer.models._windows import SLIDING
from edgeformer.spec import Init, Model

NAMES = named({"embed": "wte", "position_embed.table": "wpe", "norm": "ln_f", "head": "lm_head"}) | named(
    {
        "attention_norm": "ln_1",
        "ffn_norm": "ln_2",
        **{f"attention.{n}": f"attn.attention.{n}_proj" for n in "qkv"},
        "attention.o": "attn.attention.out_proj",
        "ffn.up": "mlp.c_fc",
        "ffn.down": "mlp.c_proj",
    },
    "layers.{i}.",
    "h.{i}.",
)
PREFIXES = ("transformer.", "")
IGNORED = {r"\.attn\.attention\.(masked_)?bias$": ""}  # buffers of old checkpoints
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """A GPT-Neo decoder."""
    config.ignore("classifier_dropout")
    width, heads = config.size("hidden_size", 2048), config.size("num_heads", 16)
    count, window = config.layers("num_layers", 24), config.size("window_size", 256)
    context, norm = (
        config.size("max_position_embeddings", 2048),
        LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5)),
    )
    ffn = MLP(
        hidden=config.optional_size("intermediate_size") or 4 * width,
        act=config.activation("activation_function", "gelu_new"),
    )
    dropout = config.number("resid_dropout", 0.0)
    blocks = [
        Block(
            attention=GQA(
                heads=heads,
                kv_heads=heads,
                head_dim=width // heads,
                mask=Mask(window=window if kind == "local" else None),
                output_bias=True,
                scale=1.0,
                dropout=config.number("attention_dropout", 0.0),
            ),
            ffn=ffn,
            norm=norm,
            dropout=dropout,
        )
        for kind in _kinds(config, count)
    ]
    return Decoder(
        vocab=config.size("vocab_size", 50_257),
        width=width,
        context=context,
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=tuple(blocks),
        norm=norm,
        positions=Learned(count=context),
        tied=config.flag("tie_word_embeddings", True),
        dropout=config.number("embed_dropout", 0.0),
    )


def _kinds(config: HfConfig, count: int) -> list[str]:
    """`global` or `local` for each layer: attention_types is `[[kinds, times], ...]`, attention_layers the same expanded."""
    types = config.take("attention_types", [[["global", "local"], count // 2]])
    kinds = [kind for pattern, times in types for _ in range(times) for kind in pattern]
    if (
        config.take("attention_layers", kinds) != kinds
        or len(kinds) != count
        or not {"global", "local"}.issuperset(kinds)
    ):
        raise ConfigError(
            f"{config.where}: attention_types {types} must name global or local for each of {count} layers"
        )
    return kinds


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block, (window, types) = block_of(model, Block), listed_windows(model)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="gelu_tanh")
    kinds = ["local" if kind == SLIDING else "global" for kind in types]
    return (
        of_class("gpt_neo", "GPTNeoForCausalLM")
        | {key: value for key, value in sizes(model).items() if key != "num_hidden_layers"}
        | epsilon(model.norm, "layer_norm_epsilon")
        | {
            "num_heads": a.heads,
            "num_layers": len(model.blocks),
            "attention_types": [[kinds, 1]],
            "attention_layers": kinds,
            "window_size": window or 256,
            "intermediate_size": ffn.hidden,
            "activation_function": hf_activation(ffn.act),
            "resid_dropout": block.dropout,
            "attention_dropout": a.dropout,
            "embed_dropout": model.dropout,
        }
    )


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
