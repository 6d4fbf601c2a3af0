"""Odd configs of encoders and of encoder–decoder models; see `family_cases`."""

from __future__ import annotations

from typing import Any

from family_cases import TINY, rope

_BERT = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
_ENCODER_BASE: dict[str, dict[str, Any]] = {
    "distilbert": dict(dim=48, hidden_dim=80, n_layers=2, n_heads=6, vocab_size=97, max_position_embeddings=256,
                       initializer_range=0.2),
    "albert": _BERT | dict(embedding_size=20, num_hidden_layers=4, num_hidden_groups=2),
    "modernbert": _BERT | dict(pad_token_id=0, bos_token_id=1, cls_token_id=1, sep_token_id=2, eos_token_id=2,
                               num_hidden_layers=4, local_attention=30),
    "roberta": _BERT | dict(pad_token_id=1),
    "electra": _BERT | dict(embedding_size=20),
    "mpnet": _BERT | dict(pad_token_id=1),
}  # fmt: skip
ENCODERS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {
        "plain": {},
        "relu-3-types-odd-head": dict(hidden_act="relu", type_vocab_size=3, hidden_size=36, num_attention_heads=3),
        "tanh-gelu-1-layer-1-head": dict(hidden_act="gelu_new", num_hidden_layers=1, num_attention_heads=1),
        "large-eps-wide-ffn-untied": dict(
            layer_norm_eps=1e-3, intermediate_size=200, num_attention_heads=12, tie_word_embeddings=False
        ),
    },
    "roberta": {
        "plain": {},
        "other-padding-one-type": dict(pad_token_id=5, type_vocab_size=1, hidden_act="relu"),
        "odd-head-untied": dict(hidden_size=36, num_attention_heads=3, layer_norm_eps=1e-3, tie_word_embeddings=False),
    },
    "distilbert": {
        "plain": {},
        "relu-odd-head": dict(dim=36, n_heads=3, activation="relu", n_layers=3),
        "one-head-untied": dict(n_heads=1, tie_word_embeddings=False),
    },
    "albert": {
        "two-groups": {},
        "one-group-five-layers-relu": dict(num_hidden_groups=1, num_hidden_layers=5, hidden_act="relu", embedding_size=48,
                                           tie_word_embeddings=False),
        "uneven-groups-odd-head": dict(num_hidden_groups=3, num_hidden_layers=5, hidden_size=36, num_attention_heads=3),
    },
    "electra": {
        "narrow": {},
        "whole-relu-odd-head": dict(embedding_size=36, hidden_size=36, num_attention_heads=3, hidden_act="relu"),
        "untied-3-types": dict(tie_word_embeddings=False, type_vocab_size=3, layer_norm_eps=1e-3),
    },
    "mpnet": {
        "plain": {},
        "relu-odd-head-untied": dict(
            hidden_size=36, num_attention_heads=3, hidden_act="relu", layer_norm_eps=1e-3, tie_word_embeddings=False
        ),
    },
    "modernbert": {
        "every-third": {},
        "biases-types": dict(
            attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, decoder_bias=False, local_attention=10,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        ),
        "silu-odd-head-thetas": dict(
            hidden_size=36, num_attention_heads=3, hidden_activation="silu", classifier_activation="relu", norm_eps=1e-3,
            rope_parameters={"full_attention": rope("linear", 1e4), "sliding_attention": rope("default", 100.0)},
        ),
    },
}  # fmt: skip
"""Encoders, as `CASES`."""


def encoder_settings(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """The whole config of an encoder's case."""
    return _ENCODER_BASE.get(model_type, _BERT) | config


_SIDES = dict(d_model=48, encoder_layers=2, decoder_layers=3, encoder_attention_heads=6, decoder_attention_heads=4,
              encoder_ffn_dim=80, decoder_ffn_dim=72, vocab_size=97, max_position_embeddings=256, init_std=0.2)  # fmt: skip
_PAIR_BASE: dict[str, dict[str, Any]] = {
    "t5": dict(d_model=48, d_kv=10, d_ff=80, num_layers=2, num_decoder_layers=3, num_heads=6, vocab_size=97),
    "bart": _SIDES,
    "marian": _SIDES | dict(pad_token_id=96),
}
ENCODER_DECODERS: dict[str, dict[str, dict[str, Any]]] = {
    "t5": {
        "plain": {},
        "gated-unscaled": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "few-buckets-silu": dict(
            relative_attention_num_buckets=12, relative_attention_max_distance=40, feed_forward_proj="gated-silu", num_heads=3,
            num_decoder_layers=1, layer_norm_epsilon=1e-3,
        ),
    },
    "mt5": {"plain": {}},
    "bart": {
        "plain": {},
        "scaled-relu": dict(scale_embedding=True, activation_function="relu", init_std=0.1),
        "odd-heads": dict(
            d_model=36, encoder_attention_heads=3, decoder_attention_heads=2, decoder_layers=1, activation_function="gelu_new"
        ),
    },
    "marian": {
        "plain": {},
        "scaled-swish": dict(scale_embedding=True, activation_function="swish", init_std=0.1),
        "odd-heads": dict(d_model=36, encoder_attention_heads=3, decoder_attention_heads=2, encoder_layers=1),
    },
}  # fmt: skip
"""Encoder–decoder models, as `CASES`."""


def pair_settings(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """The whole config of an encoder–decoder's case."""
    return _PAIR_BASE[{"mt5": "t5"}.get(model_type, model_type)] | config
