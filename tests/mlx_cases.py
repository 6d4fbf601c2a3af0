"""A config of each family that mlx-lm's model type of that family computes exactly; `left`: parts that it stores unquantized."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from family_cases import TINY, rope

_NARROW = TINY | dict(hidden_size=96, intermediate_size=128)
_WIDE = _NARROW | dict(head_dim=16)
_GPT2 = dict(n_embd=96, n_head=6, n_layer=2, n_positions=256, vocab_size=97, initializer_range=0.2)
_LATENT = _NARROW | dict(
    num_key_value_heads=6, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=16
)  # fmt: skip
STOCK: dict[str, dict[str, Any]] = {
    "llama": _WIDE | dict(attention_bias=True),
    "qwen2": _NARROW,
    "qwen3": _WIDE,
    "mixtral": _NARROW | dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _WIDE | dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0]),
    "olmoe": _NARROW | dict(num_experts=4, num_experts_per_tok=2),
    "olmo2": _NARROW,
    "gemma2": _WIDE | dict(sliding_window=256, query_pre_attn_scalar=48),
    "gemma3_text": _WIDE
    | dict(hidden_size=64, num_attention_heads=4, sliding_window=40, num_hidden_layers=6, sliding_window_pattern=3),
    "phi": _NARROW,
    "phi3": _NARROW | dict(pad_token_id=0),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2 | dict(activation_function="gelu"),
    "gpt_neox": _NARROW | dict(intermediate_size=384, hidden_act="gelu_new"),
    "starcoder2": _NARROW | dict(hidden_act="gelu"),
    "stablelm": _NARROW | dict(qk_layernorm=True, rope_parameters=rope("default", partial_rotary_factor=0.5)),
    "smollm3": _WIDE | dict(pad_token_id=0, no_rope_layers=[1, 0]),
    "granite": _NARROW
    | dict(attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=2.5),
    "cohere": _NARROW | dict(use_qk_norm=True),
    "glm": _WIDE | dict(pad_token_id=0, rope_parameters=rope("default", partial_rotary_factor=1.0)),
    "glm4": _WIDE | dict(pad_token_id=0),
    "minicpm3": _LATENT | dict(rms_norm_eps=1e-5, dim_model_base=24, scale_depth=1.4, scale_emb=3),
    "deepseek_v2": _LATENT
    | dict(n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=32, first_k_dense_replace=1,
           num_experts_per_tok=2, n_group=1, topk_group=1),
}  # fmt: skip
"""model_type, as mlx-lm and transformers call it -> its config."""
FORMULAS: dict[str, dict[str, Any]] = {
    "openelm": dict(
        model_dim=96, head_dim=16, num_transformer_layers=2, vocab_size=97, num_query_heads=[4, 6], num_kv_heads=[2, 3],
        ffn_multipliers=[1.0, 2.0], ffn_dim_divisor=32, max_context_length=256,
    ),
    "minicpm": _NARROW | dict(scale_emb=3.0, scale_depth=1.4, dim_model_base=32),
}  # fmt: skip
"""The same for families that transformers has no class for: the oracle is our numpy back end."""


def lm_logits(folder, ids, split):
    """mlx-lm's logits [T, V], in a prompt of `split` tokens and single steps."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, trust_remote_code="model_file" in json.loads((folder / "config.json").read_text()))
    cache, row = make_prompt_cache(model), mx.array(ids[None].astype(np.int32))
    parts = [model(row[:, :split], cache=cache)]
    for i in range(split, len(ids)):
        parts.append(model(row[:, i : i + 1], cache=cache))
        mx.eval(parts[-1])
    return np.array(mx.concatenate(parts, 1)[0].astype(mx.float32))
