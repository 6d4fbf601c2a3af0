"""ChatGLM2, ChatGLM3 and GLM-4-9B as first published (Du et al. 2022, arXiv 2103.10360; GLM Team 2024, arXiv 2406.12793).

transformers has no class for it: the published code's formula is the reference. Half of each head is rotated, by neighbouring
channels; q, k and v are one matrix, gate and up another.
"""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models._config import HfConfig
from edgeformer.models._names import Names, halves, named, side_by_side
from edgeformer.spec import Init, Model, Norm

PREFIXES = ("transformer.", "")
IGNORED = {r"rotary_pos_emb\.inv_freq$": ""}  # recomputed from the config


def spec(config: HfConfig) -> Decoder:
    """A ChatGLM decoder of the second generation or later."""
    config.expect(
        apply_residual_connection_post_layernorm=False, post_layer_norm=True, pre_seq_len=None, quantization_bit=0
    )
    config.expect(prefix_projection=False, original_rope=True, tie_word_embeddings=False, add_bias_linear=False)
    config.ignore(
        "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "fp32_residual_connection"
    )
    config.ignore("classifier_dropout", "rope_theta")
    heads, width = config.size("num_attention_heads", 32), config.size("hidden_size", 4096)
    eps, head_dim = config.number("layernorm_epsilon", 1e-5), config.size("kv_channels", 128)
    norm: Norm = RMSNorm(eps=eps) if config.flag("rmsnorm", True) else LayerNorm(eps=eps)
    groups = config.size("multi_query_group_num", 1)
    attention = GQA(
        heads=heads,
        kv_heads=groups if config.flag("multi_query_attention", False) else heads,
        head_dim=head_dim,
        position=RopeInterleaved(dim=head_dim // 2, theta=10_000.0 * config.number("rope_ratio", 1.0)),
        bias=config.flag("add_qkv_bias", False),
        dropout=config.number("attention_dropout", 0.0),
    )
    ffn = GLU(hidden=config.size("ffn_hidden_size", 13_696), act="silu")
    block = Block(attention=attention, ffn=ffn, norm=norm, dropout=config.number("hidden_dropout", 0.0))
    return Decoder(
        vocab=config.size("padded_vocab_size", 65_024),
        width=width,
        context=config.size("seq_length", 2048),
        init=Init(std=0.02),
        blocks=(block,) * config.size("num_layers", 28),
        norm=norm,
        tied=False,
    )


def names(spec: Model) -> Names:
    """Canonical name -> stored name."""
    a: Any = spec.blocks[0].attention  # type: ignore[attr-defined]
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    theirs = "encoder.layers.{i}."
    return (
        named({"embed": "embedding.word_embeddings", "norm": "encoder.final_layernorm", "head": "output_layer"})
        | named(
            {
                "attention_norm": "input_layernorm",
                "ffn_norm": "post_attention_layernorm",
                "attention.o": "self_attention.dense",
                "ffn.down": "mlp.dense_4h_to_h",
            },
            "layers.{i}.",
            theirs,
        )
        | side_by_side("layers.{i}.attention", f"{theirs}self_attention.query_key_value", {"q": q, "k": kv, "v": kv})
        | halves("layers.{i}.ffn", f"{theirs}mlp.dense_h_to_4h")
    )
