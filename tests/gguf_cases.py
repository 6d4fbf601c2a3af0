"""A config of each family that one of llama.cpp's architectures computes: where it has GELU, by its tanh approximation."""

from __future__ import annotations

from typing import Any

import mlx_cases
from family_cases import TINY, rope

_STOCK = mlx_cases.STOCK
_WIDE = TINY | dict(hidden_size=96, intermediate_size=128)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _STOCK["llama"]),
    "mistral": ("llama", _WIDE | dict(head_dim=16, sliding_window=None)),
    "mixtral": ("llama", _STOCK["mixtral"]),
    "qwen2": ("qwen2", _STOCK["qwen2"]),
    "qwen3": ("qwen3", _STOCK["qwen3"]),
    "qwen3_moe": ("qwen3moe", _STOCK["qwen3_moe"] | dict(mlp_only_layers=[], norm_topk_prob=True)),
    "olmo": ("olmo", _WIDE | dict(clip_qkv=0.7)),
    "olmo2": ("olmo2", _STOCK["olmo2"]),
    "olmoe": ("olmoe", _STOCK["olmoe"] | dict(num_key_value_heads=6)),
    "gemma": ("gemma", _WIDE | dict(head_dim=16)),
    "gemma2": ("gemma2", _STOCK["gemma2"] | dict(sliding_window=20, query_pre_attn_scalar=16, num_hidden_layers=3)),
    "gemma3_text": (
        "gemma3",
        _WIDE | dict(head_dim=16, sliding_window=40, num_hidden_layers=7, query_pre_attn_scalar=16),
    ),
    "phi": ("phi2", _STOCK["phi"]),
    "phi3": ("phi3", _STOCK["phi3"] | dict(partial_rotary_factor=0.5)),
    "gpt2": ("gpt2", _STOCK["gpt2"]),
    "gpt_neox": ("gptneox", _STOCK["gpt_neox"] | dict(hidden_act="gelu")),
    "gpt_bigcode": ("starcoder", _STOCK["gpt_bigcode"] | dict(activation_function="gelu_pytorch_tanh")),
    "starcoder2": ("starcoder2", _STOCK["starcoder2"] | dict(hidden_act="gelu_pytorch_tanh")),
    "bloom": ("bloom", dict(hidden_size=96, n_head=6, n_layer=2, vocab_size=97, initializer_range=0.2)),
    "mpt": ("mpt", dict(d_model=96, n_heads=6, n_layers=2, vocab_size=97, max_seq_len=256, initializer_range=0.2)),
    "falcon": (
        "falcon",
        dict(hidden_size=96, num_attention_heads=6, num_hidden_layers=2, vocab_size=97, initializer_range=0.2,
             new_decoder_architecture=True, num_kv_heads=2),
    ),
    "stablelm": ("stablelm", _STOCK["stablelm"]),
    "smollm3": ("smollm3", _WIDE | dict(head_dim=16, num_hidden_layers=5, pad_token_id=0)),
    "granite": ("granite", _STOCK["granite"]),
    "cohere": ("command-r", _STOCK["cohere"] | dict(use_qk_norm=False)),
    "glm": ("chatglm", _STOCK["glm"]),
    "glm4": ("glm4", _STOCK["glm4"]),
    "deepseek_v2": ("deepseek2", _STOCK["deepseek_v2"]),
}  # fmt: skip
"""model_type -> llama.cpp's architecture, and a config for transformers."""
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "phi3@longrope": (
        "phi3", "phi3",
        _STOCK["phi3"] | dict(max_position_embeddings=1024, original_max_position_embeddings=256, rope_parameters=dict(
            rope_type="longrope", rope_theta=10_000.0, short_factor=[1.0 + n / 10 for n in range(8)],
            long_factor=[1.5 + n / 3 for n in range(8)],
            original_max_position_embeddings=256, factor=4.0,
        )),
    ),
    "deepseek_v2@no-query-rank": (
        "deepseek_v2", "deepseek2",
        _STOCK["deepseek_v2"] | dict(q_lora_rank=None, n_shared_experts=2, routed_scaling_factor=1.7, first_k_dense_replace=0),
    ),
    "deepseek_v2@yarn": (
        "deepseek_v2", "deepseek2",
        _STOCK["deepseek_v2"] | dict(rope_parameters=rope("yarn", mscale=0.707, mscale_all_dim=0.707, factor=8.0)),
    ),
    "gemma3_text@every-third": (
        "gemma3_text", "gemma3",
        _WIDE | dict(head_dim=16, sliding_window=40, num_hidden_layers=4, query_pre_attn_scalar=16, rope_parameters={
            "full_attention": rope("default", 1e6), "sliding_attention": rope("default", 500.0)},
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]),
    ),
    "llama@yarn-temperature": ("llama", "llama", _WIDE | dict(rope_parameters=rope("yarn", factor=4.0, attention_factor=1.3))),
}  # fmt: skip
"""Settings of a family that it has elsewhere in its metadata or tensors: name -> model_type, architecture, config."""
FORMULAS: dict[str, tuple[str, dict[str, Any]]] = {
    "openelm": ("openelm", mlx_cases.FORMULAS["openelm"]),
    "minicpm": ("minicpm", mlx_cases.FORMULAS["minicpm"]),
    "minicpm3": (
        "minicpm3",
        _STOCK["minicpm3"] | dict(hidden_size=128, num_attention_heads=8, num_key_value_heads=8, dim_model_base=256,
                                  scale_emb=12, scale_depth=1.4),
    ),
    "chatglm": (
        "chatglm",
        dict(num_layers=2, padded_vocab_size=97, hidden_size=96, ffn_hidden_size=128, kv_channels=16, num_attention_heads=6,
             seq_length=256, rmsnorm=True, add_qkv_bias=True, multi_query_attention=True, multi_query_group_num=2, rope_ratio=50),
    ),
}  # fmt: skip
"""The same where the oracle is our numpy back end: transformers has no class, or initialises these weights too small."""
EXACT_GELU = frozenset(("gpt_neox", "mpt", "falcon"))
"""Families whose config has the exact GELU, which llama.cpp approximates."""
TABLE = frozenset((
    *EXACT_GELU, "gemma", "gemma2", "gemma3_text", "gemma3_text@every-third", "phi", "gpt2", "gpt_bigcode", "starcoder2", "bloom",
))  # fmt: skip
"""Families with a GELU, which ggml looks up in a table of fp16 values."""
