"""T5, T5 1.1 and Flan-T5 (Raffel et al. 2019, arXiv 1910.10683; Shazeer 2020): relative biases, RMSNorm, unscaled scores."""

from __future__ import annotations

from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.block import Block
from edgeformer.layers.cross_attention import CrossAttention
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.tower import Tower
from edgeformer.models._config import ACTIVATIONS, HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, epsilon, ffn_in, model_of, of_class, part
from edgeformer.models._names import Names, named
from edgeformer.models._shape import hf_activation
from edgeformer.spec import Init, Layer, Model

NAMES: Names = {"embed.weight": "shared.weight", "head.weight": "lm_head.weight"}
for _side, _last in (("encoder", 1), ("decoder", 2)):
    _block = f"{_side}.block.{{i}}.layer."
    NAMES |= {
        f"{_side}.positions.0.table.weight": f"{_side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    }
    NAMES |= {f"{_side}.norm.weight": f"{_side}.final_layer_norm.weight"}
    NAMES |= named(
        {
            **{f"attention.{n}": f"0.SelfAttention.{n}" for n in "qkvo"},
            "attention_norm": "0.layer_norm",
            **{f"cross.{n}": f"1.EncDecAttention.{n}" for n in "qkvo"},
            "cross_norm": "1.layer_norm",
            "ffn_norm": f"{_last}.layer_norm",
            "ffn.gate": f"{_last}.DenseReluDense.wi_0",
            "ffn.down": f"{_last}.DenseReluDense.wo",
        },
        f"{_side}.layers.{{i}}.",
        _block,
    )
TIED = {
    name: "embed.weight" for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
}
IGNORED = {r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$": ""}  # never used


def names(spec: EncoderDecoder) -> Names:
    """Canonical name -> stored name. The plain FFN's first map and the gated FFN's second share the name `up`."""
    gated = isinstance(spec.encoder.blocks[0].ffn, GLU)  # type: ignore[attr-defined]
    up = "wi_1" if gated else "wi"
    return NAMES | {
        f"{side}.layers.{{i}}.ffn.up.weight": f"{side}.block.{{i}}.layer.{last}.DenseReluDense.{up}.weight"
        for side, last in (("encoder", 1), ("decoder", 2))
    }


LONGEST = 16_384
"""Context in tokens. T5's positions are distances, all large ones alike: n_positions is the training length, not a limit."""


def spec(config: HfConfig) -> EncoderDecoder:
    """A T5 encoder–decoder."""
    return t5_like(config, feed_forward="relu", tied=True, scaled=True)


def t5_like(config: HfConfig, *, feed_forward: str, tied: bool, scaled: bool) -> EncoderDecoder:
    """T5 or mT5; `feed_forward` and `tied` are the defaults of these keys; `scaled`: the head's input can be scaled."""
    config.expect(is_encoder_decoder=True)
    config.ignore("classifier_dropout", "initializer_factor", "is_gated_act", "dense_act_fn", "num_hidden_layers")
    width, inner = config.size("d_model", 512), config.size("d_kv", 64)
    heads, count = config.size("num_heads", 8), config.layers("num_layers", 6)
    dropout, norm = config.number("dropout_rate", 0.1), RMSNorm(eps=config.number("layer_norm_epsilon", 1e-6))
    ffn = _feed_forward(config, feed_forward)
    buckets = config.size("relative_attention_num_buckets", 32)
    furthest = config.size("relative_attention_max_distance", 128)
    cross = CrossAttention(heads=heads, head_dim=inner, scale=1.0)

    def tower(layers: int, writes: bool) -> Tower:
        attention = GQA(
            heads=heads,
            kv_heads=heads,
            head_dim=inner,
            position=RelativeBias(heads=heads, buckets=buckets, furthest=furthest, bidirectional=not writes),
            mask=Mask(causal=writes),
            scale=1.0,
            dropout=dropout,
        )
        block = Block(attention=attention, ffn=ffn, norm=norm, cross=cross if writes else None, dropout=dropout)
        return Tower(blocks=(block,) * layers, norm=norm, dropout=dropout)

    tied = config.flag("tie_word_embeddings", tied)
    scaled = config.flag("scale_decoder_outputs", tied) if scaled else False
    own_head = config.stored is not None and "lm_head.weight" in config.stored and not scaled  # T5 1.1 has one
    return EncoderDecoder(
        vocab=config.size("vocab_size", 32_128),
        width=width,
        context=max(config.size("n_positions", 512), LONGEST),
        init=Init(),
        encoder=tower(count, False),
        decoder=tower(config.optional_size("num_decoder_layers") or count, True),
        tied=not own_head if config.stored is not None else tied,
        logit_scale=width**-0.5 if scaled else 1.0,
    )


def _feed_forward(config: HfConfig, usual: str) -> Layer:
    """The FFN of feed_forward_proj, an activation or `gated-` and one; gated-gelu always means GELU's tanh approximation."""
    said, hidden = config.take("feed_forward_proj", usual), config.size("d_ff", 2048)
    kind, _, act = str(said).rpartition("-")
    if kind not in ("", "gated") or act not in ACTIVATIONS:
        raise ConfigError(
            f"{config.where}: feed_forward_proj = {said!r} is not known; it must be one of {', '.join(ACTIVATIONS)}, or"
            " `gated-` and one of them"
        )
    if kind:
        return GLU(hidden=hidden, act="gelu_tanh" if act == "gelu" else ACTIVATIONS[act])
    return MLP(hidden=hidden, act=ACTIVATIONS[act], bias=False)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return t5_config(spec, "t5", "T5ForConditionalGeneration")


def t5_config(spec: Model, model_type: str, architecture: str) -> dict[str, Any]:
    """T5's or mT5's config.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, EncoderDecoder)
    tower = model.encoder
    a, ffn, norm = attention_in(tower.blocks[0]), ffn_in(tower.blocks[0]), tower.norm
    bias = part(a.position, RelativeBias, heads=a.heads, buckets=32, furthest=128)
    plain = part(ffn, MLP, hidden=4 * model.width, act="relu")
    if isinstance(ffn, GLU):
        said = "gated-gelu" if ffn.act == "gelu_tanh" else f"gated-{hf_activation(ffn.act)}"
    else:
        said = hf_activation(plain.act)
    return (
        of_class(model_type, architecture)
        | epsilon(norm, "layer_norm_epsilon")
        | {
            "d_model": model.width,
            "d_kv": a.head_dim,
            "d_ff": plain.hidden,
            "num_heads": a.heads,
            "num_layers": len(tower.blocks),
            "num_decoder_layers": len(model.decoder.blocks),
            "vocab_size": model.vocab,
            "feed_forward_proj": said,
            "relative_attention_num_buckets": bias.buckets,
            "relative_attention_max_distance": bias.furthest,
            "dropout_rate": tower.dropout,
            "is_encoder_decoder": True,
            "tie_word_embeddings": model.tied,
            "scale_decoder_outputs": model.logit_scale != 1.0,
            **({"n_positions": model.context} if model.context > LONGEST else {}),
        }
    )


FAMILY = Family(spec, names, config=config, ignored=IGNORED, tied=TIED, common=True)
