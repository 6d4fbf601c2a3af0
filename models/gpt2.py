"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, a plain FFN, biases everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mlp import MLP
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, block_of, epsilon, model_of, of_class, part
from edgeformer.models._shape import hf_activation
from edgeformer.spec import Init, Model
from edgeformer.weights.parts import Part


def _conv1d(ours: str, theirs: str, index: int = 0, of: int = 1) -> dict[str, Part]:
    """transformers' Conv1D stores its weight as [inputs, outputs]."""
    return {
        f"layers.{{i}}.{ours}.weight": Part(f"h.{{i}}.{theirs}.weight", index, of, axis=1, transposed=True),
        f"layers.{{i}}.{ours}.bias": Part(f"h.{{i}}.{theirs}.bias", index, of),
    }


NAMES: dict[str, str | Part] = {
    "embed.weight": "wte.weight",
    "position_embed.table.weight": "wpe.weight",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
    "head.weight": "lm_head.weight",
    **{
        f"layers.{{i}}.{ours}.{kind}": f"h.{{i}}.{theirs}.{kind}"
        for ours, theirs in (("attention_norm", "ln_1"), ("ffn_norm", "ln_2"))
        for kind in ("weight", "bias")
    },
    **_conv1d("attention.q", "attn.c_attn", 0, 3),
    **_conv1d("attention.k", "attn.c_attn", 1, 3),
    **_conv1d("attention.v", "attn.c_attn", 2, 3),
    **_conv1d("attention.o", "attn.c_proj"),
    **_conv1d("ffn.up", "mlp.c_fc"),
    **_conv1d("ffn.down", "mlp.c_proj"),
}
MLX_NAMES = {ours: replace(p, axis=0, transposed=False) if isinstance(p, Part) else p for ours, p in NAMES.items()}
"""mlx-lm's model has plain linear maps."""
PREFIXES = ("transformer.", "model.", "")
IGNORED = {
    r"h\.\d+\.attn\.(bias|masked_bias)$": "",  # the causal mask, stored as a buffer by old checkpoints
}
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """A GPT-2 decoder."""
    config.expect(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False)
    config.expect(n_special=0)
    config.ignore("n_ctx", "predict_special_tokens")
    width, heads = config.size("n_embd", 768), config.size("n_head", 12)
    dropout = config.number("resid_pdrop", 0.1)
    block = Block(
        attention=GQA(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            bias=True,
            output_bias=True,
            dropout=config.number("attn_pdrop", 0.1),
        ),
        ffn=MLP(
            hidden=config.optional_size("n_inner") or 4 * width,
            act=config.activation("activation_function", "gelu_new"),
        ),
        norm=LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5)),
        dropout=dropout,
    )
    return gpt2_decoder(config, block)


def gpt2_decoder(config: HfConfig, block: Block) -> Decoder:
    """The decoder of GPT-2 and GPT-BigCode: one block, repeated."""
    context = config.size("n_positions", 1024)
    return Decoder(
        vocab=config.size("vocab_size", 50_257),
        width=config.size("n_embd", 768),
        context=context,
        init=Init(std=config.number("initializer_range", 0.02), scale_residual=True),
        blocks=(block,) * config.layers("n_layer", 12),
        norm=block.norm,
        positions=Learned(count=context),
        tied=config.flag("tie_word_embeddings", True),
        dropout=config.number("embd_pdrop", 0.1),
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return gpt2_config(spec, "gpt2", "GPT2LMHeadModel")


def gpt2_config(spec: Model, model_type: str, architecture: str) -> dict[str, Any]:
    """The keys that GPT-2 and GPT-BigCode share.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    model = model_of(spec, Decoder)
    block = block_of(model, Block)
    a, ffn = attention_in(block), part(block.ffn, MLP, hidden=4 * model.width, act="gelu_tanh")
    return (
        of_class(model_type, architecture)
        | epsilon(model.norm, "layer_norm_epsilon")
        | {
            "n_embd": model.width,
            "n_head": a.heads,
            "n_layer": len(model.blocks),
            "n_positions": model.context,
            "n_inner": ffn.hidden,
            "vocab_size": model.vocab,
            "activation_function": "gelu_new" if ffn.act == "gelu_tanh" else hf_activation(ffn.act),
            "resid_pdrop": block.dropout,
            "attn_pdrop": a.dropout,
            "embd_pdrop": model.dropout,
            "initializer_range": model.init.std,
            "tie_word_embeddings": model.tied,
        }
    )


FAMILY = Family(
    spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, mlx_names=MLX_NAMES, common=True
)
