"""llama.cpp's `minicpm3`: latent attention with MiniCPM's multipliers, which it has as constants."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import (
    Architecture,
    names_with,
    norm_keys,
    rms_epsilon,
    shape_config,
    shape_keys,
)
from edgeformer.checkpoint.gguf_archs._rope import rope_factors, rope_keys, rope_of
from edgeformer.layers.decoder import Decoder
from edgeformer.models._inverse import Config, gated_in, model_of
from edgeformer.models._names import Names
from edgeformer.models.deepseek_v2 import latent_in
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import PerHead


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Decoder)
    a = latent_in(model)
    ranks = {"attention.kv_lora_rank": a.rank} | ({} if a.q_rank is None else {"attention.q_lora_rank": a.q_rank})
    return (
        shape_keys(spec, gated_in(model).hidden)
        | norm_keys(model.norm)
        | rope_keys(a.position, a.rope)
        | ranks
        | {
            "attention.head_count": a.heads,
            "attention.head_count_kv": a.heads,
            "attention.key_length": a.nope + a.rope,
        }
    )


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = shape_config(reader, "minicpm3") | rms_epsilon(reader)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    turned = reader.size("rope.dimension_count")
    return (
        config
        | rope_of(reader, turned, longrope=True)
        | {
            "q_lora_rank": reader.size("attention.q_lora_rank"),
            "kv_lora_rank": reader.size("attention.kv_lora_rank"),
            "qk_nope_head_dim": reader.size("attention.key_length") - turned,
            "qk_rope_head_dim": turned,
            "v_head_dim": width // heads,
            "scale_emb": 12.0,
            "scale_depth": 1.4,
            "dim_model_base": 256,
        }
    )


def names(spec: Decoder) -> Names:
    """Canonical name -> GGUF name."""
    a = latent_in(spec)
    per, up = a.nope + a.v_dim, "blk.{i}.attn_kv_b.weight"
    where = "layers.{i}.attention"
    return names_with(
        attention__q_down="attn_q_a",
        attention__q_norm="attn_q_a_norm",
        attention__q="attn_q_b",
        attention__kv_down="attn_kv_a_mqa",
        attention__norm="attn_kv_a_norm",
    ) | {
        f"{where}.k_up.weight": PerHead(up, 0, a.nope, per, transposed=True),
        f"{where}.v_up.weight": PerHead(up, a.nope, per, per),
    }


ARCHITECTURE = Architecture(names, metadata, config, rope_factors=rope_factors)
