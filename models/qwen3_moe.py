"""Qwen3 MoE (Yang et al. 2025, arXiv 2505.09388): Qwen3 with a mixture of experts in all blocks or some."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.mask import Mask
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models import llama
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    ffn_in,
    gated_in,
    listed_windows,
    llama_config,
    mixture_in,
    model_of,
    network,
)
from edgeformer.models._names import PROJECTIONS, Names, experts, stacked_experts
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec", "spellings"]


def spec(config: HfConfig) -> Decoder:
    """A Qwen3 MoE decoder."""
    config.ignore("router_aux_loss_coef", "output_router_logits", "max_window_layers")
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    window = config.optional_size("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    config.ignore("sliding_window")
    config.expect(qkv_bias=False, use_qk_norm=True, shared_expert_intermediate_size=0)  # from the first code
    attention, context = rotary_attention(config, 32, 32_768, kv_heads=4, qk_norm=norm, mask=Mask(window=window))
    ffns = feed_forward(
        config, step=config.size("decoder_sparse_step", 1), dense=config.take("mlp_only_layers", None) or []
    )
    return decoder(config, [Block(attention=attention, ffn=ffn, norm=norm) for ffn in ffns], norm, context)


def feed_forward(config: HfConfig, step: int, dense: list[int]) -> list[Any]:
    """Each layer's FFN: a mixture in every `step`-th layer, except those listed as dense."""
    mixture = MoE(
        experts=config.size("num_experts", config.take("num_local_experts", 128)),
        chosen=config.size("num_experts_per_tok", 8),
        hidden=config.size("moe_intermediate_size", 768),
        act=config.activation("hidden_act", "silu"),
        renormalize=config.flag("norm_topk_prob", False),
    )
    config.ignore("num_local_experts")
    plain = gated(config)
    return [plain if i in dense or (i + 1) % step else mixture for i in range(config.layers("num_hidden_layers", 24))]


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    router: Names = {"layers.{i}.ffn.router.weight": "layers.{i}.mlp.gate.weight"}
    return llama.NAMES | router | experts(spec, "layers.{i}.mlp.experts.{e}.{map}", PROJECTIONS)


def spellings(spec: Model) -> list[Names]:
    """The expert names of transformers 5 and mlx-lm."""
    return stacked_experts(spec, names(spec), "mlp", "mlp")


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    ffn, (window, _) = mixture_in(model), listed_windows(model)
    dense = [i for i, block in enumerate(model.blocks) if not isinstance(ffn_in(block), MoE)]
    return (
        llama_config(spec, "qwen3_moe", "Qwen3MoeForCausalLM")
        | network(gated_in(model) if dense else ffn)
        | {
            "attention_bias": attention_in(model.blocks[0]).bias,
            "num_experts": ffn.experts,
            "num_experts_per_tok": ffn.chosen,
            "moe_intermediate_size": ffn.hidden,
            "norm_topk_prob": ffn.renormalize,
            "decoder_sparse_step": 1,
            "mlp_only_layers": dense,
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": 0,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, spellings=spellings)
