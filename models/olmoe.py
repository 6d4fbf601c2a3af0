"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): a mixture of many small experts, QK norm over all heads."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.whole_norm import WholeNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, llama_config, mixture_in, model_of, network
from edgeformer.models.llama import decoder
from edgeformer.models.qwen3_moe import IGNORED, PREFIXES, TIED, names, spellings
from edgeformer.spec import Model

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec", "spellings"]


def spec(config: HfConfig) -> Decoder:
    """An OLMoE decoder."""
    config.ignore("router_aux_loss_coef", "output_router_logits")
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    clip = config.optional_number("clip_qkv")
    attention, context = rotary_attention(config, 16, 4096, qk_norm=WholeNorm(norm=norm), clip=clip)
    ffn = MoE(
        experts=config.size("num_experts", config.take("num_local_experts", 64)),
        chosen=config.size("num_experts_per_tok", 8),
        hidden=config.size("intermediate_size", 2048),
        act=config.activation("hidden_act", "silu"),
        renormalize=config.flag("norm_topk_prob", False),
    )
    config.ignore("num_local_experts")
    block = Block(attention=attention, ffn=ffn, norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 16), norm, context)


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    a, ffn = attention_in(model.blocks[0]), mixture_in(model)
    shape = (
        llama_config(spec, "olmoe", "OlmoeForCausalLM")
        | network(ffn)
        | {
            "attention_bias": a.bias,
            "clip_qkv": a.clip,
            "num_experts": ffn.experts,
            "num_experts_per_tok": ffn.chosen,
            "norm_topk_prob": ffn.renormalize,
        }
    )
    return {key: value for key, value in shape.items() if key != "head_dim"}


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, spellings=spellings)
