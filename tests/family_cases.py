"""Odd configs of every decoder family, to be built by transformers: each is there to catch a default taken silently."""

from __future__ import annotations

from typing import Any

TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_GPT2 = {"n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 256, "vocab_size": 97, "initializer_range": 0.2}
_SMALL = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "initializer_range": 0.2,
}
_LATENT = dict(
    q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, num_key_value_heads=6
)
BASE: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": {"hidden_size": 48, "num_heads": 6, "num_layers": 2, "vocab_size": 97, "initializer_range": 0.2,
                "max_position_embeddings": 256, "attention_types": [[["global", "local"], 1]], "window_size": 20},
    "opt": {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 97,
            "max_position_embeddings": 256, "word_embed_proj_dim": 48, "init_std": 0.2},
    "bloom": {"hidden_size": 48, "n_head": 6, "n_layer": 2, "vocab_size": 97, "initializer_range": 0.2},
    "mpt": {"d_model": 48, "n_heads": 6, "n_layers": 2, "vocab_size": 97, "max_seq_len": 256, "initializer_range": 0.2},
    "falcon": _SMALL,
    "qwen3_moe": TINY | dict(moe_intermediate_size=24, num_experts=5, num_experts_per_tok=2),
    "deepseek_v2": TINY | _LATENT | dict(n_routed_experts=6, n_shared_experts=1, moe_intermediate_size=24, n_group=1,
                                         topk_group=1, first_k_dense_replace=1, num_experts_per_tok=2),
    "minicpm3": TINY | _LATENT,
    "mixtral": TINY | dict(num_local_experts=5),
    "olmoe": TINY | dict(num_experts=5, num_experts_per_tok=2),
}  # fmt: skip
"""What a family's cases have in common; `TINY` for those that aren't here."""


def rope(kind: str, theta: float = 10_000.0, **rest: Any) -> dict[str, Any]:
    """`rope_parameters` of a kind, with what it needs."""
    known = {
        "linear": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "default": {},
    }
    return {"rope_type": kind, "rope_theta": theta, **known[kind], **rest}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "groups-of-3": dict(head_dim=16),
        "mqa-bias-gelu-linear": dict(
            head_dim=24, num_key_value_heads=1, attention_bias=True, mlp_bias=True, hidden_act="gelu",
            tie_word_embeddings=True, rope_parameters=rope("linear"),
        ),
        "mha-llama3": dict(head_dim=32, num_key_value_heads=6, rope_parameters=rope("llama3", 500_000.0)),
        "yarn-relu-odd-head": dict(head_dim=20, hidden_act="relu", rope_parameters=rope("yarn")),
    },
    "mistral": {
        "window": dict(sliding_window=32, head_dim=16),
        "no-window-tied": dict(sliding_window=None, head_dim=8, tie_word_embeddings=True),
        "narrow-window-odd-head": dict(
            sliding_window=7, head_dim=24, num_key_value_heads=1, hidden_act="gelu_pytorch_tanh"
        ),
        "window-linear": dict(
            sliding_window=50, head_dim=16, num_key_value_heads=6, rope_parameters=rope("linear", 1e6, factor=4.0)
        ),
    },
    "qwen2": {
        "plain": dict(hidden_size=96),
        "mixed-windows": dict(
            hidden_size=96, num_hidden_layers=3, use_sliding_window=True, sliding_window=20,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
        "max-window-layers-tied": dict(
            use_sliding_window=True, sliding_window=33, max_window_layers=1, tie_word_embeddings=True
        ),
        "yarn-mqa-relu": dict(num_key_value_heads=1, hidden_act="relu", rope_parameters=rope("yarn")),
    },
    "qwen3": {
        "plain": dict(head_dim=16),
        "bias-odd-head": dict(head_dim=24, attention_bias=True, num_key_value_heads=6),
        "mixed-windows-tied": dict(
            head_dim=32, tie_word_embeddings=True, use_sliding_window=True, sliding_window=24,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "mqa-gelu-linear": dict(
            head_dim=40, num_key_value_heads=1, hidden_act="gelu", rope_parameters=rope("linear", 1e6, factor=3.0)
        ),
    },
    "gpt2": {
        "plain": {},
        "relu-inner-untied": dict(activation_function="relu", n_inner=72, tie_word_embeddings=False),
        "erf-gelu-odd-head": dict(n_embd=36, n_head=3, activation_function="gelu", n_layer=3),
        "one-head-tanh": dict(n_head=1, activation_function="tanh", layer_norm_epsilon=1e-3),
    },
    "mixtral": {
        "plain": dict(head_dim=16),
        "window-top-3-tied": dict(sliding_window=20, num_experts_per_tok=3, tie_word_embeddings=True, num_key_value_heads=6),
        "one-of-three-gelu-yarn": dict(
            num_local_experts=3, num_experts_per_tok=1, hidden_act="gelu", head_dim=20, rope_parameters=rope("yarn")
        ),
    },
    "qwen3_moe": {
        "plain": dict(head_dim=16),
        "renormalized-dense-first-bias": dict(
            head_dim=24, norm_topk_prob=True, mlp_only_layers=[0], attention_bias=True, num_hidden_layers=3
        ),
        "every-second-window-tied": dict(
            decoder_sparse_step=2, use_sliding_window=True, sliding_window=30, tie_word_embeddings=True, num_hidden_layers=3,
            hidden_act="gelu", num_key_value_heads=1,
        ),
    },
    "olmoe": {
        "plain": {},
        "clipped-renormalized": dict(clip_qkv=0.7, norm_topk_prob=True, num_key_value_heads=6),
        "bias-linear-tied": dict(
            attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1, rope_parameters=rope("linear"),
            num_experts_per_tok=4,
        ),
    },
    "gemma": {
        "plain": dict(head_dim=16),
        "mqa-odd-head-untied": dict(head_dim=20, num_key_value_heads=1, tie_word_embeddings=False),
        "bias-exact-gelu-linear": dict(
            head_dim=8, attention_bias=True, hidden_act="gelu", num_key_value_heads=6, rope_parameters=rope("linear")
        ),
    },
    "gemma2": {
        "windows-scale": dict(head_dim=16, sliding_window=20, query_pre_attn_scalar=48),
        "no-caps-untied-odd-head": dict(
            head_dim=20, attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False,
            sliding_window=9, num_hidden_layers=3,
        ),
        "tight-caps-types": dict(
            head_dim=24, attn_logit_softcapping=2.0, final_logit_softcapping=1.5, num_key_value_heads=6, sliding_window=33,
            layer_types=["full_attention", "sliding_attention"], hidden_activation="gelu", attention_bias=True,
        ),
    },
    "gemma3_text": {
        "two-thetas": dict(head_dim=16, sliding_window=20, num_hidden_layers=6, sliding_window_pattern=3),
        "scaled-full-layers-odd-head": dict(
            head_dim=20, sliding_window=16, query_pre_attn_scalar=30, layer_types=["sliding_attention", "full_attention"],
            rope_parameters={"full_attention": rope("linear", 1e5, factor=8.0), "sliding_attention": rope("default", 500.0)},
        ),
        "caps-untied-mqa": dict(
            head_dim=32, num_key_value_heads=1, final_logit_softcapping=2.0,
            tie_word_embeddings=False, layer_types=["full_attention", "full_attention"], attention_bias=True,
        ),
    },
    "phi": {
        "half-rotated": dict(num_key_value_heads=6),
        "forty-percent-norms-groups": dict(
            hidden_size=60, qk_layernorm=True, rope_parameters=rope("default", partial_rotary_factor=0.4)
        ),
        "relu-whole-linear": dict(
            hidden_act="relu", num_key_value_heads=1, rope_parameters=rope("linear", partial_rotary_factor=1.0)
        ),
    },
    "phi3": {
        "fused": dict(pad_token_id=0),
        "window-tied-gelu": dict(
            sliding_window=25, tie_word_embeddings=True, hidden_act="gelu", num_key_value_heads=1, pad_token_id=0
        ),
        "three-quarters-rotated": dict(
            hidden_size=96, num_key_value_heads=6, rope_parameters=rope("default", partial_rotary_factor=0.75), pad_token_id=0
        ),
    },
    "gpt_neo": {
        "global-local": {},
        "three-layers-relu-untied": dict(
            num_layers=3, attention_types=[[["local"], 2], [["global"], 1]], activation_function="relu",
            tie_word_embeddings=False, window_size=7,
        ),
        "inner-odd-head": dict(hidden_size=36, num_heads=3, intermediate_size=50, window_size=64, layer_norm_epsilon=1e-3),
    },
    "gpt_neox": {
        "quarter-rotated": {},
        "sequential-no-bias": dict(
            use_parallel_residual=False, attention_bias=False, rope_parameters=rope("default", partial_rotary_factor=0.5)
        ),
        "whole-tied-relu-yarn": dict(
            tie_word_embeddings=True, hidden_act="relu", rope_parameters=rope("yarn", partial_rotary_factor=1.0)
        ),
    },
    "gpt_bigcode": {
        "one-key-head": {},
        "mha-unscaled-inner": dict(multi_query=False, scale_attn_weights=False, n_inner=70, initializer_range=0.1),
        "untied-relu-odd-head": dict(n_embd=36, n_head=3, tie_word_embeddings=False, activation_function="relu"),
    },
    "starcoder2": {
        "bias": {},
        "no-bias-window-untied": dict(use_bias=False, sliding_window=22, tie_word_embeddings=False, num_key_value_heads=6),
        "mqa-relu-linear": dict(
            num_key_value_heads=1, hidden_act="relu", norm_epsilon=1e-3, rope_parameters=rope("linear")
        ),
    },
    "opt": {
        "norm-before": {},
        "350m-projected-norm-after": dict(do_layer_norm_before=False, word_embed_proj_dim=24),
        "no-bias-no-affine-gelu": dict(
            enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu", num_attention_heads=3
        ),
        "no-final-norm-untied": dict(_remove_final_layer_norm=True, tie_word_embeddings=False),
    },
    "bloom": {
        "six-heads": {},
        "eight-heads-untied": dict(n_head=8, tie_word_embeddings=False),
        "one-layer-three-heads": dict(n_layer=1, n_head=3, layer_norm_epsilon=1e-3),
    },
    "mpt": {
        "six-heads": {},
        "clipped-scaled": dict(attn_config={"clip_qkv": 0.8, "softmax_scale": 0.2}),
        "eight-heads-untied": dict(n_heads=8, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    },
    "falcon": {
        "7b": {},
        "40b-two-norms": dict(new_decoder_architecture=True, num_kv_heads=2),
        "11b-one-norm-bias": dict(new_decoder_architecture=True, num_kv_heads=3, num_ln_in_parallel_attn=1, bias=True),
        "sequential-mha-relu": dict(
            parallel_attn=False, multi_query=False, bias=True, activation="relu", tie_word_embeddings=False,
            ffn_hidden_size=100, rope_parameters=rope("linear"),
        ),
    },
    "stablelm": {
        "quarter-rotated": dict(hidden_size=96),
        "parallel-head-norms": dict(use_parallel_residual=True, qk_layernorm=True, num_key_value_heads=6),
        "bias-half-tied": dict(
            use_qkv_bias=True, qk_layernorm=True, tie_word_embeddings=True,
            rope_parameters=rope("default", partial_rotary_factor=0.5),
        ),
    },
    "olmo": {
        "no-affine": {},
        "clipped": dict(clip_qkv=0.5, num_key_value_heads=6),
        "tied-bias-linear": dict(
            tie_word_embeddings=True, attention_bias=True, num_key_value_heads=1, rope_parameters=rope("linear")
        ),
    },
    "olmo2": {
        "whole-norms": {},
        "mha-tied-bias": dict(num_key_value_heads=6, tie_word_embeddings=True, attention_bias=True),
        "mqa-yarn-gelu": dict(num_key_value_heads=1, hidden_act="gelu", rope_parameters=rope("yarn")),
    },
    "smollm3": {
        "every-fourth": dict(num_hidden_layers=5, pad_token_id=0),
        "listed-window-untied": dict(
            no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=20, tie_word_embeddings=False, pad_token_id=0,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "windows-where-nothing-turns": dict(
            no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=20, pad_token_id=0, layer_types=None
        ),
        "interval-2-bias-yarn": dict(
            no_rope_layer_interval=2, num_hidden_layers=3, attention_bias=True, mlp_bias=True, pad_token_id=0,
            rope_parameters=rope("yarn"),
        ),
    },
    "granite": {
        "multipliers": dict(
            attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=2.5
        ),
        "residual-only-tied": dict(residual_multiplier=0.7, tie_word_embeddings=True, num_key_value_heads=1),
        "bias-linear": dict(
            attention_bias=True, mlp_bias=True, logits_scaling=0.5, attention_multiplier=0.35, rope_parameters=rope("linear")
        ),
    },
    "cohere": {
        "interleaved": {},
        "head-norms-scale": dict(use_qk_norm=True, logit_scale=0.4),
        "bias-untied-mqa": dict(
            attention_bias=True, tie_word_embeddings=False, num_key_value_heads=1, rope_parameters=rope("linear", 500.0)
        ),
    },
    "deepseek_v2": {
        "dense-first": {},
        "no-query-latent-two-shared": dict(
            q_lora_rank=None, n_shared_experts=2, routed_scaling_factor=1.7, first_k_dense_replace=0, num_hidden_layers=3
        ),
        "groups-bias-yarn": dict(
            topk_method="group_limited_greedy", n_group=3, topk_group=2, attention_bias=True, num_experts_per_tok=3,
            rope_parameters=rope("yarn", mscale=0.707, mscale_all_dim=0.5),
        ),
    },
    "minicpm3": {
        "multipliers": dict(dim_model_base=24),
        "other-multipliers-bias": dict(scale_emb=2, scale_depth=0.8, dim_model_base=32, attention_bias=True, mlp_bias=True),
        "untied-no-depth": dict(dim_model_base=None, tie_word_embeddings=False, scale_depth=None, rope_parameters=rope("linear")),
    },
    "glm": {
        "half-rotated-bias": dict(head_dim=16, pad_token_id=0),
        "whole-wide-heads": dict(
            head_dim=24, attention_bias=False, pad_token_id=0, rope_parameters=rope("linear", 500.0, partial_rotary_factor=1.0)
        ),
        "mqa-tied-quarter": dict(
            head_dim=8, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0,
            rope_parameters=rope("default", partial_rotary_factor=0.25),
        ),
    },
    "glm4": {
        "half-rotated": dict(head_dim=16, pad_token_id=0, attention_bias=True),
        "no-bias-whole": dict(
            head_dim=8, attention_bias=False, pad_token_id=0, rope_parameters=rope("default", partial_rotary_factor=1.0)
        ),
        "mqa-tied-quarter": dict(
            head_dim=24, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0,
            rope_parameters=rope("default", 500.0, partial_rotary_factor=0.25),
        ),
    },
}  # fmt: skip
"""model_type -> name of the case -> what its config says besides the base."""


def settings(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """The whole config of a case."""
    return BASE.get(model_type, TINY) | config


DECODERS = [(model_type, name) for model_type, cases in CASES.items() for name in cases]
