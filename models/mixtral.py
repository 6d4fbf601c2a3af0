"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts in every block."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models import llama
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import listed_windows, llama_config, mixture_in, model_of, network
from edgeformer.models._names import Names, experts, stacked_experts
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder
from edgeformer.spec import Model

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec", "spellings"]


def spec(config: HfConfig) -> Decoder:
    """A Mixtral decoder."""
    config.ignore("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")  # for training only
    heads = config.size("num_attention_heads", 32)
    head_dim = config.optional_size("head_dim") or config.size("hidden_size") // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 131_072), theta=1e6)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads", 8) or heads,
        head_dim=head_dim,
        position=position,
        mask=Mask(window=config.optional_size("sliding_window")),
        dropout=config.number("attention_dropout", 0.0),
    )
    ffn = MoE(
        experts=config.size("num_local_experts", config.size("num_experts", 8)),
        chosen=config.size("num_experts_per_tok", 2),
        hidden=config.size("intermediate_size", 14_336),
        act=config.activation("hidden_act", "silu"),
    )
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    block = Block(attention=attention, ffn=ffn, norm=norm)
    return decoder(config, [block] * config.layers("num_hidden_layers", 32), norm, context)


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    router: Names = {"layers.{i}.ffn.router.weight": "layers.{i}.block_sparse_moe.gate.weight"}
    theirs = {"gate": "w1", "up": "w3", "down": "w2"}
    return llama.NAMES | router | experts(spec, "layers.{i}.block_sparse_moe.experts.{e}.{map}", theirs)


def spellings(spec: Model) -> list[Names]:
    """The expert names of transformers 5 and mlx-lm."""
    return stacked_experts(spec, names(spec), "block_sparse_moe", "mlp")


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    ffn = mixture_in(model)
    chosen = {"num_local_experts": ffn.experts, "num_experts_per_tok": ffn.chosen}
    window, _ = listed_windows(model)
    return llama_config(spec, "mixtral", "MixtralForCausalLM") | network(ffn) | chosen | {"sliding_window": window}


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, spellings=spellings)
