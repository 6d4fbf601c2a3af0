"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv 2405.04434): latent attention, many small experts and shared ones."""

from __future__ import annotations

import math
from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.mla import MLA
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models import llama
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    epsilon,
    ffn_in,
    gated_in,
    mixture_in,
    model_of,
    network,
    of_class,
    part,
    rotary,
    sizes,
    solved,
)
from edgeformer.models._names import PROJECTIONS, Names, experts, named, stacked_experts
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model, layers
from edgeformer.weights.parts import PerHead

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec", "spellings"]


def spec(config: HfConfig) -> Decoder:
    """A DeepSeek-V2 decoder."""
    config.ignore("router_aux_loss_coef", "output_router_logits", "aux_loss_alpha", "seq_aux", "ep_size", "head_dim")
    config.expect(norm_topk_prob=False, scoring_func="softmax", moe_layer_freq=1)
    count, norm = config.layers("num_hidden_layers", 32), RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    attention, context = latent_attention(config, RopeInterleaved, inner_eps=1e-6)
    bias, act = config.flag("mlp_bias", False), config.activation("hidden_act", "silu")
    dense, hidden = gated(config, bias=bias), config.size("moe_intermediate_size", 1407)
    limited = config.take("topk_method", "greedy") == "group_limited_greedy"
    config.expect(topk_method="group_limited_greedy" if limited else "greedy")
    groups = (config.size("n_group"), config.size("topk_group")) if limited else (1, 1)
    config.ignore("n_group", "topk_group")
    shared = config.optional_size("n_shared_experts", 2)
    mixture = MoE(
        experts=config.size("n_routed_experts", 64),
        chosen=config.size("num_experts_per_tok", 6),
        hidden=hidden,
        act=act,
        renormalize=False,
        scale=config.number("routed_scaling_factor", 1.0),
        groups=groups[0],
        chosen_groups=groups[1],
        shared=None if shared is None else GLU(hidden=hidden * shared, act=act, bias=bias),
    )
    first = config.take("first_k_dense_replace", 0)
    blocks = [Block(attention=attention, ffn=dense if i < first else mixture, norm=norm) for i in range(count)]
    return decoder(config, blocks, norm, context)


def latent_attention(config: HfConfig, kind: type[Rope], inner_eps: float) -> tuple[MLA, int]:
    """The attention of DeepSeek-V2 and MiniCPM3, and the positions that it reaches."""
    config.ignore("num_key_value_heads", "qk_head_dim", "head_dim")  # these follow from the others
    nope, turned = config.size("qk_nope_head_dim", 128), config.size("qk_rope_head_dim", 64)
    position, context = rope(config, turned, config.size("max_position_embeddings", 2048), kind=kind)
    config.expect(attention_dropout=0.0)
    scaling: dict[str, Any] = config.data.get("rope_parameters") or config.data.get("rope_scaling") or {}
    scale = (nope + turned) ** -0.5
    if (heat := scaling.get("mscale_all_dim")) and position.scaling is not None:  # YaRN scales scores, too
        scale *= (0.1 * heat * math.log(scaling["factor"]) + 1.0) ** 2 if scaling["factor"] > 1 else 1.0
    bias, norm = config.flag("attention_bias", False), RMSNorm(eps=inner_eps)
    return MLA(
        heads=config.size("num_attention_heads", 32),
        nope=nope,
        rope=turned,
        v_dim=config.size("v_head_dim", 128),
        rank=config.size("kv_lora_rank", 512),
        q_rank=config.optional_size("q_lora_rank", 1536),
        position=position,
        norm=norm,
        bias=bias,
        scale=scale,
    ), context


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    a = attention_of(spec.blocks[0], MLA)
    per, up = a.nope + a.v_dim, "layers.{i}.self_attn.kv_b_proj.weight"
    maps = {
        "attention.q": "self_attn.q_proj" if a.q_rank is None else "self_attn.q_b_proj",
        "attention.q_down": "self_attn.q_a_proj",
        "attention.q_norm": "self_attn.q_a_layernorm",
        "attention.kv_down": "self_attn.kv_a_proj_with_mqa",
        "attention.norm": "self_attn.kv_a_layernorm",
        "ffn.router": "mlp.gate",
        **{f"ffn.shared.{n}": f"mlp.shared_experts.{n}_proj" for n in PROJECTIONS},
    }
    heads: Names = {
        "layers.{i}.attention.k_up.weight": PerHead(up, 0, a.nope, per, transposed=True),
        "layers.{i}.attention.v_up.weight": PerHead(up, a.nope, per, per),
    }
    stacked = experts(spec, "layers.{i}.mlp.experts.{e}.{map}", PROJECTIONS)
    return llama.NAMES | named(maps, "layers.{i}.", "layers.{i}.") | heads | stacked


def spellings(spec: Decoder) -> list[Names]:
    """The expert names of transformers 5 and mlx-lm."""
    return stacked_experts(spec, names(spec), "mlp", "mlp")


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a, ffn, dense = latent_in(model), mixture_in(model), gated_in(model)
    first = next((i for i, block in enumerate(model.blocks) if isinstance(ffn_in(block), MoE)), len(model.blocks))
    grouped = {"topk_method": "group_limited_greedy"} if ffn.groups > 1 else {"topk_method": "greedy"}
    return (
        of_class("deepseek_v2", "DeepseekV2ForCausalLM")
        | sizes(model)
        | network(dense)
        | epsilon(model.norm)
        | latent_config(a, RopeInterleaved)
        | grouped
        | {
            "mlp_bias": dense.bias,
            "moe_intermediate_size": ffn.hidden,
            "n_routed_experts": ffn.experts,
            "num_experts_per_tok": ffn.chosen,
            "routed_scaling_factor": ffn.scale,
            "n_group": ffn.groups,
            "topk_group": ffn.chosen_groups,
            "n_shared_experts": ffn.shared.hidden // ffn.hidden if isinstance(ffn.shared, GLU) else None,
            "norm_topk_prob": False,
            "first_k_dense_replace": first,
        }
    )


def latent_in(spec: Decoder) -> MLA:
    """The attention of the first block."""
    block, a = spec.blocks[0], attention_in(spec.blocks[0])
    found = next((layer for _, layer, _ in layers(block, 1) if isinstance(layer, MLA)), None)
    return found or part(
        a, MLA, heads=a.heads, nope=a.head_dim, rope=2, v_dim=a.head_dim, rank=2, position=RopeInterleaved(dim=2),
        norm=RMSNorm(), bias=False,
    )  # fmt: skip


def latent_config(a: MLA, kind: type[Rope]) -> dict[str, Any]:
    """The inverse of `latent_attention`."""
    turned, whole = rotary(a.position, a.rope, kind=kind), a.nope + a.rope
    scaling, scale = turned.get("rope_scaling", {}), whole**-0.5
    factor = scaling.get("factor", 1.0)
    if a.scale is not None and a.scale != scale and a.scale > 0 and factor > 1:
        step = 0.1 * math.log(factor)
        guess = ((a.scale / scale) ** 0.5 - 1.0) / step
        scaling["mscale_all_dim"] = solved(lambda x: scale * (0.1 * x * math.log(factor) + 1.0) ** 2, a.scale, guess)
    return turned | {
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "qk_nope_head_dim": a.nope,
        "qk_rope_head_dim": a.rope,
        "v_head_dim": a.v_dim,
        "kv_lora_rank": a.rank,
        "q_lora_rank": a.q_rank,
        "attention_bias": a.bias,
    }


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, spellings=spellings)
