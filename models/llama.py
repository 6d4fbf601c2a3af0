"""Llama (1, 2, 3.x and everything saved as `llama`: TinyLlama, SmolLM, ...).

Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from edgeformer.errors import ConfigError
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, gated_in, listed_windows, llama_config, model_of
from edgeformer.spec import Init, Layer, Model, Norm

NAMES = {
    "embed.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "head.weight": "lm_head.weight",
    "layers.{i}.attention_norm.weight": "layers.{i}.input_layernorm.weight",
    "layers.{i}.ffn_norm.weight": "layers.{i}.post_attention_layernorm.weight",
} | {
    f"layers.{{i}}.{ours}.{kind}": f"layers.{{i}}.{theirs}.{kind}"
    for ours, theirs in {
        **{f"attention.{n}": f"self_attn.{n}_proj" for n in "qkvo"},
        **{f"ffn.{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")},
        **{f"attention.{n}_norm": f"self_attn.{n}_norm" for n in "qk"},
    }.items()
    for kind in ("weight", "bias")
}
PREFIXES = ("model.", "")
IGNORED = {
    r"rotary_emb\.inv_freq$": "",  # a buffer of old checkpoints, recomputed from the config
}
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """A Llama decoder."""
    attention, context = rotary_attention(config, None, 2048)
    ffn_bias = config.flag("mlp_bias", False)
    return llama_like(config, [attention] * config.layers("num_hidden_layers"), context, ffn_bias=ffn_bias)


def gated(config: HfConfig, act: str = "silu", bias: bool = False) -> GLU:
    """The gated feed-forward network of Llama's descendants."""
    return GLU(hidden=config.size("intermediate_size"), act=config.activation("hidden_act", act), bias=bias)


def llama_like(config: HfConfig, attentions: list[GQA], context: int, *, ffn_bias: bool = False) -> Decoder:
    """The decoder shared by Llama's descendants: pre-norm RMSNorm blocks with a gated FFN, one per attention."""
    norm, ffn = RMSNorm(eps=config.number("rms_norm_eps", 1e-6)), gated(config, bias=ffn_bias)
    return decoder(config, [Block(attention=a, ffn=ffn, norm=norm) for a in attentions], norm, context)


class Fields(TypedDict, total=False):
    """Fields of `Decoder` that not all of Llama's descendants set."""

    positions: Layer | None
    embed_scale: float
    embed_norm: Norm | None
    embed_width: int | None
    head_bias: bool
    logit_scale: float
    logit_softcap: float | None
    dropout: float


def decoder(
    config: HfConfig,
    blocks: Sequence[Layer],
    norm: Norm | None,
    context: int,
    *,
    tied: bool = False,
    **fields: Unpack[Fields],
) -> Decoder:
    """A decoder of these blocks, with the fields that all of Llama's descendants share; `tied` is the family's default."""
    return Decoder(
        vocab=config.size("vocab_size"),
        width=config.size("hidden_size"),
        context=context,
        init=Init(std=config.number("initializer_range", 0.02)),
        blocks=tuple(blocks),
        norm=norm,
        tied=config.flag("tie_word_embeddings", tied),
        **fields,
    )


def layer_windows(config: HfConfig) -> list[int | None]:
    """The sliding window of each layer, from layer_types or the older use_sliding_window + max_window_layers."""
    count = config.layers("num_hidden_layers")
    window = config.optional_size("sliding_window", 4096)
    if not config.flag("use_sliding_window", False):
        window = None
    first = config.number("max_window_layers", 28)
    types = config.take("layer_types", None)
    if types is None:
        return [window if i >= first else None for i in range(count)]
    known = {"full_attention", "sliding_attention"}
    if not isinstance(types, list) or len(types) != count or not known.issuperset(types):
        raise ConfigError(f"{config.where}: layer_types must name one of {sorted(known)} for each of {count} layers")
    if "sliding_attention" in types and window is None:
        raise ConfigError(f"{config.where}: layer_types has sliding_attention, but use_sliding_window is off")
    return [window if t == "sliding_attention" else None for t in types]


def windows_config(spec: Decoder) -> dict[str, Any]:
    """The inverse of `layer_windows`."""
    window, types = listed_windows(spec)
    return {} if window is None else {"use_sliding_window": True, "sliding_window": window, "layer_types": types}


def windowed(attention: GQA, windows: list[int | None]) -> list[GQA]:
    """One attention per layer, differing only in the window."""
    return [replace(attention, mask=Mask(window=window)) for window in windows]


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    bias = {"attention_bias": attention_in(model.blocks[0]).bias, "mlp_bias": gated_in(model).bias}
    return llama_config(model, "llama", "LlamaForCausalLM") | bias


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, common=True)
