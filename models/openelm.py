"""OpenELM (Mehta et al. 2024, arXiv 2404.14619): heads and FFN widths that grow with depth, queries and keys normalised.

transformers has no class for it: the published code's formula is the reference.
"""

from __future__ import annotations

import math
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, attentions_in, ffn_in, model_of, of_class, part, rotary
from edgeformer.models._names import Names, halves, named
from edgeformer.models._shape import hf_activation
from edgeformer.spec import Init, Model
from edgeformer.weights.parts import Rows

PREFIXES = ("transformer.", "")
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """An OpenELM decoder."""
    config.expect(normalization_layer_name="rms_norm", ffn_with_glu=True)
    config.ignore("rope_max_length", "qkv_multipliers", "num_gqa_groups")  # the lists of heads imply it
    count, width, head_dim = config.layers("num_transformer_layers"), config.size("model_dim"), config.size("head_dim")
    norm = RMSNorm(eps=1e-6)
    position = Rope(dim=head_dim, theta=config.number("rope_freq_constant", 10_000.0))
    act, divisor = config.activation("activation_fn_name", "swish"), config.size("ffn_dim_divisor", 256)
    qk_norm = norm if config.flag("normalize_qk_projections", True) else None
    blocks = []
    lists = [_per_layer(config, key, count) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers")]
    for heads, kv_heads, multiplier in zip(*lists, strict=True):
        attention = GQA(heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=position, qk_norm=qk_norm)
        ffn = GLU(hidden=_divisible(multiplier * width, divisor), act=act)
        blocks.append(Block(attention=attention, ffn=ffn, norm=norm))
    return Decoder(
        vocab=config.size("vocab_size"),
        width=width,
        context=config.size("max_context_length", 2048),
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=tuple(blocks),
        norm=norm,
        tied=config.flag("share_input_output_layers", True),
    )


def _per_layer(config: HfConfig, key: str, count: int) -> list[Any]:
    values = config.take(key)
    if not isinstance(values, list) or len(values) != count:
        raise ConfigError(f"{config.where}: {key} must list a value for each of {count} layers")
    return values


def _divisible(value: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, but not less than 90 % of the value (Sandler et al. 2018, MobileNetV2's code)."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name. Sizes differ from layer to layer."""
    out: Names = named({"embed": "token_embeddings", "norm": "norm", "head": "lm_head"})
    for i, block in enumerate(spec.blocks):
        a, ours, theirs = attention_of(block, GQA), f"layers.{i}.", f"layers.{i}."
        q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        for n, start, stop in (("q", 0, q), ("k", q, q + kv), ("v", q + kv, q + 2 * kv)):
            out[f"{ours}attention.{n}.weight"] = Rows(f"{theirs}attn.qkv_proj.weight", start, stop, q + 2 * kv)
        out |= named(
            {
                "attention_norm": "attn_norm",
                "ffn_norm": "ffn_norm",
                "attention.o": "attn.out_proj",
                "attention.q_norm": "attn.q_norm",
                "attention.k_norm": "attn.k_norm",
                "ffn.down": "ffn.proj_2",
            },
            ours,
            theirs,
        ) | halves(f"{ours}ffn", f"{theirs}ffn.proj_1")
    return out


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    attentions, a = attentions_in(model), attention_in(model.blocks[0])
    ffns = [part(ffn_in(block), GLU, hidden=4 * model.width, act="silu") for block in model.blocks]
    divisor = math.gcd(256, *(ffn.hidden for ffn in ffns))
    turned = rotary(a.position, a.head_dim)
    return of_class("openelm", "OpenELMForCausalLM") | {
        "num_transformer_layers": len(model.blocks),
        "model_dim": model.width,
        "head_dim": a.head_dim,
        "vocab_size": model.vocab,
        "max_context_length": model.context,
        "rope_freq_constant": turned["rope_theta"],
        "rope_max_length": 2 * model.context,
        "num_query_heads": [x.heads for x in attentions],
        "num_kv_heads": [x.kv_heads for x in attentions],
        "num_gqa_groups": a.heads // a.kv_heads,
        "ffn_multipliers": [ffn.hidden / model.width for ffn in ffns],
        "ffn_dim_divisor": divisor,
        "ffn_with_glu": True,
        "activation_fn_name": "swish" if ffns[0].act == "silu" else hf_activation(ffns[0].act),
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": a.qk_norm is not None,
        "share_input_output_layers": model.tied,
        "initializer_range": model.init.std,
    }


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, tied=TIED, in_transformers=False)
