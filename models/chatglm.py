"""ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4-9B as first published (Du et al. 2022, arXiv 2103.10360; GLM Team 2024, 2406.12793).

transformers has no class for them: the published code's formula is the reference. From the second generation on, half of each
head is rotated, by adjacent channels; q, k and v are one matrix, gate and up another. The first is a prefix language model with
2D RoPE; its blocks normalise, then add to alpha times the normalised input: DeepNorm, with its norms shifted by one.
"""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope_2d import Rope2D
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import (
    attention_in,
    block_of,
    epsilon,
    ffn_in,
    gated_in,
    model_of,
    of_class,
    part,
    rotary,
    solved,
)
from edgeformer.models._names import KINDS, Names, halves, named, side_by_side
from edgeformer.spec import Init, Model, Norm
from edgeformer.weights.parts import Reordered, Rows

PREFIXES = ("transformer.", "")
IGNORED = {r"rotary_pos_emb\.inv_freq$": ""}  # recomputed from the config


def spec(config: HfConfig) -> Decoder:
    """A ChatGLM decoder of any generation."""
    if "inner_hidden_size" in config.data:
        return _first_generation(config)
    config.expect(
        apply_residual_connection_post_layernorm=False, post_layer_norm=True, pre_seq_len=None, quantization_bit=0
    )
    config.expect(prefix_projection=False, original_rope=True, tie_word_embeddings=False, add_bias_linear=False)
    config.ignore(
        "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "fp32_residual_connection"
    )
    config.ignore("classifier_dropout", "rope_theta", "vocab_size", "attn_implementation")
    config.expect(num_hidden_layers=config.layers("num_layers", 28))
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
        blocks=(block,) * config.layers("num_layers", 28),
        norm=norm,
        tied=False,
    )


def _first_generation(config: HfConfig) -> Decoder:
    """ChatGLM-6B."""
    config.expect(position_encoding_2d=True, pre_seq_len=None, prefix_projection=False, quantization_bit=0)
    config.expect(tie_word_embeddings=False)
    config.ignore("gmask_token_id", "mask_token_id")
    heads, width, count = config.size("num_attention_heads"), config.size("hidden_size"), config.layers("num_layers")
    context, head_dim = config.size("max_sequence_length", 2048), width // heads
    norm = LayerNorm(eps=config.number("layernorm_epsilon", 1e-5))
    attention = GQA(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        position=Rope2D(dim=head_dim),
        mask=Mask(prefix=True),
        bias=True,
        output_bias=True,
    )
    ffn = MLP(hidden=config.size("inner_hidden_size"), act="gelu_tanh")
    block = PostNormBlock(attention=attention, ffn=ffn, norm=norm, residual_scale=(2 * count) ** 0.5)
    return Decoder(
        vocab=config.size("vocab_size"),
        width=width,
        context=context,
        init=Init(std=0.02),
        blocks=(block,) * count,
        embed_norm=norm,
        tied=False,
    )


def _first_names(spec: Decoder) -> Names:
    """A block's stored first norm is the norm that ends the block before it."""
    attention = attention_of(spec.blocks[0], GQA)
    count, dim = len(spec.blocks), attention.head_dim
    out: Names = named({"embed": "word_embeddings", "embed_norm": "layers.0.input_layernorm", "head": "lm_head"})
    # stored: each half's pairs side by side; canonical: first members of all pairs, then second ones
    order = tuple(start + i for start in (0, dim // 2, dim // 4, 3 * dim // 4) for i in range(dim // 4))
    block = {
        "attention_norm": "post_attention_layernorm",
        "attention.o": "attention.dense",
        "ffn.up": "mlp.dense_h_to_4h",
        "ffn.down": "mlp.dense_4h_to_h",
    }
    for i in range(count):
        where = f"layers.{i}."
        after = f"layers.{i + 1}.input_layernorm" if i + 1 < count else "final_layernorm"
        out |= named({"ffn_norm": after}, where) | named(block, where, where)
        for kind in KINDS:
            stored = f"{where}attention.query_key_value.{kind}"
            for name, at in (("q", 0), ("k", dim), ("v", 2 * dim)):
                rows = Rows(stored, at, at + dim, 3 * dim)
                out[f"{where}attention.{name}.{kind}"] = rows if name == "v" else Reordered(stored, order, rows)
    return out


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    if isinstance(spec.blocks[0], PostNormBlock):
        return _first_names(spec)
    a = attention_of(spec.blocks[0], GQA)
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


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    count, a = len(model.blocks), attention_in(model.blocks[0])
    shape = of_class("chatglm", "ChatGLMModel") | {
        "hidden_size": model.width,
        "num_layers": count,
        "num_attention_heads": a.heads,
        "tie_word_embeddings": model.tied,
    }
    if isinstance(model.blocks[0], PostNormBlock):
        ffn = part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu_tanh")
        return (
            shape
            | epsilon(model.embed_norm, "layernorm_epsilon")
            | {
                "inner_hidden_size": ffn.hidden,
                "max_sequence_length": model.context,
                "position_encoding_2d": True,
                "vocab_size": model.vocab,
            }
        )
    block = block_of(model, Block)
    theta = rotary(a.position, a.head_dim, kind=RopeInterleaved)["rope_theta"]
    return (
        shape
        | epsilon(model.norm, "layernorm_epsilon")
        | {
            "ffn_hidden_size": gated_in(model).hidden,
            "kv_channels": a.head_dim,
            "multi_query_attention": a.kv_heads != a.heads,
            "multi_query_group_num": a.kv_heads,
            "add_qkv_bias": a.bias,
            "add_bias_linear": False,
            "rmsnorm": isinstance(model.norm, RMSNorm),
            "post_layer_norm": True,
            "original_rope": True,
            "rope_ratio": solved(lambda x: 10_000.0 * x, theta, theta / 10_000.0),
            "seq_length": model.context,
            "padded_vocab_size": model.vocab,
            "vocab_size": model.vocab,
            "attention_dropout": a.dropout,
            "hidden_dropout": block.dropout,
        }
    )


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, in_transformers=False)
