"""Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al. 2024, arXiv 2404.14219): Llama with fused projections and LongRoPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.models import llama
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, listed_windows, llama_config, model_of, rotary
from edgeformer.models._names import Names, halves, side_by_side
from edgeformer.models._rope import rope
from edgeformer.models.llama import IGNORED, PREFIXES, TIED, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "PREFIXES", "TIED", "config", "names", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A Phi-3 decoder."""
    heads, norm = config.size("num_attention_heads", 32), RMSNorm(eps=config.number("rms_norm_eps", 1e-5))
    head_dim = config.optional_size("head_dim") or config.size("hidden_size", 3072) // heads
    position, context = rope(config, head_dim, config.size("max_position_embeddings", 4096), partial=1.0)
    if isinstance(
        position.scaling, LongRopeScaling
    ):  # its generate rebuilds the cache at the switch, other families' don't
        position = replace(position, scaling=replace(position.scaling, restarts=True))
    config.expect(attention_bias=False, mlp_bias=False)
    attention = GQA(
        heads=heads,
        kv_heads=config.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        position=position,
        mask=Mask(window=config.optional_size("sliding_window")),
        dropout=config.number("attention_dropout", 0.0),
    )
    block = Block(attention=attention, ffn=gated(config), norm=norm, dropout=config.number("resid_pdrop", 0.0))
    config.ignore("full_attn_mod", "interpolate_factor", "lm_head_bias", "embd_pdrop")
    blocks = [block] * config.layers("num_hidden_layers", 32)
    return decoder(config, blocks, norm, context)


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    attention = attention_of(spec.blocks[0], GQA)
    q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    qkv = side_by_side("layers.{i}.attention", "layers.{i}.self_attn.qkv_proj", {"q": q, "k": kv, "v": kv})
    return llama.NAMES | qkv | halves("layers.{i}.ffn", "layers.{i}.mlp.gate_up_proj")


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block, a, (window, _) = block_of(model, Block), attention_in(model.blocks[0]), listed_windows(model)
    turned = rotary(a.position, a.head_dim, share="partial_rotary_factor")
    if scaling := turned.get("rope_scaling"):
        turned["original_max_position_embeddings"] = scaling.get("original_max_position_embeddings", model.context)
    return (
        llama_config(spec, "phi3", "Phi3ForCausalLM")
        | turned
        | {
            "sliding_window": window,
            "resid_pdrop": block.dropout,
            "embd_pdrop": 0.0,
            "pad_token_id": None,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
