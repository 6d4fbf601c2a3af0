"""llama.cpp's `deepseek2`: latent attention, absorbed; many small experts and shared ones."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import Architecture, names_with, norm_keys, shape_config, shape_keys
from edgeformer.checkpoint.gguf_archs._rope import rope_keys, rope_of
from edgeformer.errors import CheckpointError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.moe import MoE
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models._inverse import Config, ffn_in, gated_in, mixture_in, model_of
from edgeformer.models._names import Names
from edgeformer.models._shape import need
from edgeformer.models.deepseek_v2 import latent_config, latent_in
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import PerHead

_INNER_EPS = 1e-6
_SOFTMAX = 1  # llama_expert_gating_func_type


def is_lite(layers: int, vocab: int) -> bool:
    """Whether llama.cpp takes a model for DeepSeek-V2-Lite or its like, whose queries have no low rank."""
    return layers in (26, 27) or (layers == 48 and vocab == 128_256)


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec.

    Raises:
        Unmapped: llama.cpp takes the model for another because of its number of layers.
    """
    model = model_of(spec, Decoder)
    a, ffn, count = latent_in(model), mixture_in(model), len(model.blocks)
    if is_lite(count, model.vocab):
        need(
            a.q_rank is None, f"llama.cpp reads no q_lora_rank of models with {count} layers and {model.vocab:,} tokens"
        )
    dense = next((i for i, block in enumerate(model.blocks) if isinstance(ffn_in(block), MoE)), count)
    heat = latent_config(a, RopeInterleaved).get("rope_scaling", {}).get("mscale_all_dim")
    rope = rope_keys(a.position, a.rope, RopeInterleaved)
    rope.pop("rope.scaling.attn_factor", None)  # with a weight, llama.cpp's temperature is 1
    return (
        shape_keys(spec, gated_in(model).hidden)
        | norm_keys(model.norm)
        | rope
        | ({} if heat is None else {"rope.scaling.yarn_log_multiplier": 0.1 * heat})
        | {
            "attention.head_count": a.heads,
            "attention.head_count_kv": 1,  # absorbed, all heads share the latent
            "attention.q_lora_rank": a.q_rank or 0,
            "attention.kv_lora_rank": a.rank,
            "attention.key_length": a.rank + a.rope,
            "attention.value_length": a.rank,
            "attention.key_length_mla": a.nope + a.rope,
            "attention.value_length_mla": a.v_dim,
            "leading_dense_block_count": dense,
            "expert_count": ffn.experts,
            "expert_used_count": ffn.chosen,
            "expert_shared_count": ffn.shared.hidden // ffn.hidden if isinstance(ffn.shared, GLU) else 0,
            "expert_feed_forward_length": ffn.hidden,
            "expert_weights_scale": float(ffn.scale),
            "expert_gating_func": _SOFTMAX,
        }
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file.

    Raises:
        CheckpointError: a DeepSeek-V3, groups of experts, or what transformers' DeepSeek-V2 has no setting for.
    """
    shape, turned = shape_config(reader, "deepseek_v2"), reader.size("rope.dimension_count")
    absorbed = reader.optional("attention.key_length_mla") is not None
    suffix = "_mla" if absorbed else ""
    if absorbed:
        reader.ignore("attention.key_length", "attention.value_length")
    key, value = reader.size(f"attention.key_length{suffix}"), reader.size(f"attention.value_length{suffix}")
    if key <= turned:
        raise CheckpointError(f"{reader.file}: keys of {key} channels can't have {turned} rotated ones and others")
    if (eps := reader.number("attention.layer_norm_rms_epsilon")) != _INNER_EPS:
        raise CheckpointError(
            f"{reader.file}: attention.layer_norm_rms_epsilon is {eps}; DeepSeek-V2's inner norms have {_INNER_EPS}, and"
            " llama.cpp has one epsilon for all"
        )
    _check_experts(reader)
    shared, q_rank = reader.optional("expert_shared_count"), reader.optional("attention.q_lora_rank")
    return (
        shape
        | _rope(reader, turned)
        | {
            "rms_norm_eps": eps,
            "num_key_value_heads": shape["num_attention_heads"],
            "qk_nope_head_dim": key - turned,
            "qk_rope_head_dim": turned,
            "v_head_dim": value,
            "kv_lora_rank": reader.size("attention.kv_lora_rank"),
            "q_lora_rank": None if is_lite(shape["num_hidden_layers"], shape["vocab_size"]) else q_rank,
            "moe_intermediate_size": reader.size("expert_feed_forward_length"),
            "n_routed_experts": reader.size("expert_count"),
            "num_experts_per_tok": reader.size("expert_used_count"),
            "n_shared_experts": shared,
            "routed_scaling_factor": reader.number("expert_weights_scale", 1.0) or 1.0,  # 0: unset
            "first_k_dense_replace": reader.optional("leading_dense_block_count") or 0,
            "topk_method": "greedy",
        }
    )


def _check_experts(reader: Reader) -> None:
    """Refuse what llama.cpp's architecture can do and DeepSeek-V2 doesn't."""
    if (groups := reader.optional("expert_group_count") or 1) > 1:
        raise CheckpointError(
            f"{reader.file}: expert_group_count is {groups}; llama.cpp ranks groups by their two best experts, DeepSeek-V2 by the"
            " best one"
        )
    reader.ignore("expert_group_used_count")
    gating = reader.optional("expert_gating_func") or _SOFTMAX
    if gating != _SOFTMAX or reader.flag("expert_weights_norm", False):
        raise CheckpointError(
            f"{reader.file} weighs its experts as DeepSeek-V3 does (expert_gating_func {gating}, or normalized weights);"
            " edgeformer reads DeepSeek-V2 from this architecture"
        )


def _rope(reader: Reader, turned: int) -> Config:
    found = rope_of(reader, turned)
    step = reader.number("rope.scaling.yarn_log_multiplier", 0.0)
    if found.get("rope_scaling", {}).get("rope_type") != "yarn":
        return found
    if step <= 0:
        raise CheckpointError(
            f"{reader.file} has YaRN without a positive rope.scaling.yarn_log_multiplier: llama.cpp then scales scores twice,"
            " which DeepSeek-V2 doesn't"
        )
    if "attention_factor" in found["rope_scaling"]:
        raise CheckpointError(f"{reader.file} has rope.scaling.attn_factor, which DeepSeek-V2 has no setting for")
    heat = float(f"{10 * step:.7g}")  # llama.cpp's cos and sin are unscaled, its scores scaled by this weight
    return found | {"rope_scaling": found["rope_scaling"] | {"mscale": heat, "mscale_all_dim": heat}}


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name."""
    maps: dict[str, str] = {
        "attention.q": "attn_q" if latent_in(spec).q_rank is None else "attn_q_b",
        "attention.q_down": "attn_q_a",
        "attention.q_norm": "attn_q_a_norm",
        "attention.kv_down": "attn_kv_a_mqa",
        "attention.norm": "attn_kv_a_norm",
        "attention.k_up": "attn_k_b",
        "attention.v_up": "attn_v_b",
        "ffn.router": "ffn_gate_inp",
        **{f"ffn.shared.{n}": f"ffn_{n}_shexp" for n in ("gate", "up", "down")},
    }
    experts: Names = {
        f"layers.{i}.ffn.{n}.weight": f"blk.{i}.ffn_{n}_exps.weight"
        for i, block in enumerate(spec.blocks)
        if isinstance(ffn_in(block), MoE)
        for n in ("gate", "up", "down")
    }
    return names_with(**{ours.replace(".", "__"): theirs for ours, theirs in maps.items()}) | experts


def older_names(spec: Decoder) -> list[Names]:
    """The names of files made before llama.cpp absorbed the maps: one matrix for keys and values."""
    a = latent_in(spec)
    per, up = a.nope + a.v_dim, "blk.{i}.attn_kv_b.weight"
    heads: Names = {
        "layers.{i}.attention.k_up.weight": PerHead(up, 0, a.nope, per, transposed=True),
        "layers.{i}.attention.v_up.weight": PerHead(up, a.nope, per, per),
    }
    return [names(spec) | heads]


ARCHITECTURE = Architecture(names, metadata, config, spellings=older_names)
