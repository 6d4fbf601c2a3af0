"""BART (Lewis et al. 2019, arXiv 1910.13461): learned positions, post-norm blocks, a norm after the embedding."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.cross_attention import CrossAttention
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.tower import Tower
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, ffn_in, model_of, of_class, part
from edgeformer.models._names import Names, named
from edgeformer.models._shape import hf_activation
from edgeformer.spec import Init, Layer, Model
from edgeformer.weights.parts import Flat

NAMES: Names = {
    "embed.weight": "shared.weight",
    "head_bias": Flat("final_logits_bias", 1),
    "head.weight": "lm_head.weight",
}
for _side in ("encoder", "decoder"):
    NAMES |= named(
        {"position_embed.table": "embed_positions", "embed_norm": "layernorm_embedding"}, f"{_side}.", f"{_side}."
    )
    NAMES |= named(
        {
            **{f"attention.{n}": f"self_attn.{n}_proj" for n in "qkv"},
            "attention.o": "self_attn.out_proj",
            "attention_norm": "self_attn_layer_norm",
            **{f"cross.{n}": f"encoder_attn.{n}_proj" for n in "qkv"},
            "cross.o": "encoder_attn.out_proj",
            "cross_norm": "encoder_attn_layer_norm",
            "ffn.up": "fc1",
            "ffn.down": "fc2",
            "ffn_norm": "final_layer_norm",
        },
        f"{_side}.layers.{{i}}.",
        f"{_side}.layers.{{i}}.",
    )
PREFIXES = ("model.", "")
UNPREFIXED = ("lm_head.", "final_logits_bias")
TIED = {
    f"{prefix}{name}": "embed.weight"
    for prefix in PREFIXES
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
}


def spec(config: HfConfig) -> EncoderDecoder:
    """A BART encoder–decoder."""
    config.expect(normalize_before=False, add_final_layer_norm=False, normalize_embedding=True, add_bias_logits=False)
    config.expect(static_position_embeddings=False, extra_pos_embeddings=2)
    config.ignore("replacing_rate", "student_encoder_layers", "student_decoder_layers")  # how it was distilled
    context = config.size("max_position_embeddings", 1024)
    return bart_like(config, Learned(count=context, offset=2), LayerNorm(), context)


def bart_like(config: HfConfig, positions: Layer, embed_norm: LayerNorm | None, context: int) -> EncoderDecoder:
    """The encoder–decoder shared by BART and Marian."""
    config.expect(is_encoder_decoder=True, tie_word_embeddings=True, encoder_layerdrop=0.0, decoder_layerdrop=0.0)
    config.expect(do_blenderbot_90_layernorm=False)
    config.ignore(
        "activation_dropout", "classifier_dropout", "classif_dropout", "num_hidden_layers", "gradient_checkpointing"
    )
    width, act = config.size("d_model", 1024), config.activation("activation_function", "gelu")
    dropout, inner = config.number("dropout", 0.1), config.number("attention_dropout", 0.0)

    def tower(side: str) -> Tower:
        heads, writes = config.size(f"{side}_attention_heads", 16), side == "decoder"
        shape: dict[str, Any] = dict(heads=heads, head_dim=width // heads, bias=True)
        attention = GQA(kv_heads=heads, mask=Mask(causal=writes), output_bias=True, dropout=inner, **shape)
        block = PostNormBlock(
            attention=attention,
            ffn=MLP(hidden=config.size(f"{side}_ffn_dim", 4096), act=act),
            norm=LayerNorm(),
            cross=CrossAttention(**shape) if writes else None,
            dropout=dropout,
        )
        return Tower(
            blocks=(block,) * config.layers(f"{side}_layers", 12),
            positions=positions,
            embed_scale=width**0.5 if config.flag("scale_embedding", False) else 1.0,
            embed_norm=embed_norm,
            dropout=dropout,
        )

    return EncoderDecoder(
        vocab=config.size("vocab_size", 50_265),
        width=width,
        context=context,
        init=Init(std=config.number("init_std", 0.02)),
        encoder=tower("encoder"),
        decoder=tower("decoder"),
        head_bias=True,
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return of_class("bart", "BartForConditionalGeneration") | bart_config(spec)


def bart_config(spec: Model) -> dict[str, Any]:
    """The keys that BART and Marian share.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, EncoderDecoder)
    out: dict[str, Any] = {
        "d_model": model.width,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "init_std": model.init.std,
        "is_encoder_decoder": True,
        "scale_embedding": model.encoder.embed_scale != 1.0,
    }
    for side, tower in (("encoder", model.encoder), ("decoder", model.decoder)):
        a = attention_in(tower.blocks[0])
        ffn = part(ffn_in(tower.blocks[0]), MLP, hidden=4 * model.width, act="gelu")
        out |= {
            f"{side}_layers": len(tower.blocks),
            f"{side}_attention_heads": a.heads,
            f"{side}_ffn_dim": ffn.hidden,
            "activation_function": hf_activation(ffn.act),
            "attention_dropout": a.dropout,
            "dropout": tower.dropout,
        }
    return out


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, unprefixed=UNPREFIXED, tied=TIED)
