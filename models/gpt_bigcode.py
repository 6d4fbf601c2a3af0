"""GPT-BigCode: SantaCoder and StarCoder (Li et al. 2023, arXiv 2305.06161): GPT-2 with multi-query attention."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mlp import MLP
from edgeformer.models._attention import attention_of
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import attention_in, model_of
from edgeformer.models._names import Names, by_group, named, side_by_side
from edgeformer.models.gpt2 import gpt2_config, gpt2_decoder
from edgeformer.spec import Model

PREFIXES = ("transformer.", "")
IGNORED = {r"\.attn\.(masked_)?bias$": ""}  # buffers of old checkpoints
TIED = {"lm_head.weight": "embed.weight"}


def spec(config: HfConfig) -> Decoder:
    """A GPT-BigCode decoder."""
    config.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "pad_key_length")
    config.ignore("max_batch_size", "max_sequence_length", "pre_allocate_kv_cache", "validate_runner_input")
    config.ignore("runner_max_sequence_length")
    config.ignore("num_key_value_heads")  # transformers writes it, but reads multi_query
    width, heads = config.size("n_embd", 768), config.size("n_head", 12)
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    attention = GQA(
        heads=heads,
        kv_heads=1 if config.flag("multi_query", True) else heads,
        head_dim=width // heads,
        bias=True,
        output_bias=True,
        scale=None if config.flag("scale_attn_weights", True) else 1.0,
        dropout=config.number("attn_pdrop", 0.1),
    )
    ffn = MLP(
        hidden=config.optional_size("n_inner") or 4 * width,
        act=config.activation("activation_function", "gelu_pytorch_tanh"),
    )
    block = Block(attention=attention, ffn=ffn, norm=norm, dropout=config.number("resid_pdrop", 0.1))
    return gpt2_decoder(config, block)


def names(spec: Decoder) -> Names:
    """Canonical name -> stored name."""
    a = attention_of(spec.blocks[0], GQA)
    ours, theirs = "layers.{i}.attention", "h.{i}.attn.c_attn"
    if a.kv_heads == a.heads:
        qkv = by_group(ours, theirs, 1, a.head_dim)
    else:
        qkv = side_by_side(ours, theirs, {"q": a.heads * a.head_dim, "k": a.head_dim, "v": a.head_dim})
    return (
        named({"embed": "wte", "position_embed.table": "wpe", "norm": "ln_f", "head": "lm_head"})
        | named(
            {
                "attention_norm": "ln_1",
                "ffn_norm": "ln_2",
                "attention.o": "attn.c_proj",
                "ffn.up": "mlp.c_fc",
                "ffn.down": "mlp.c_proj",
            },
            "layers.{i}.",
            "h.{i}.",
        )
        | qkv
    )


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    a = attention_in(model_of(spec, Decoder).blocks[0])
    own = {"multi_query": a.kv_heads == 1, "scale_attn_weights": a.scale is None}
    return gpt2_config(spec, "gpt_bigcode", "GPTBigCodeForCausalLM") | own


FAMILY = Family(spec, names, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED)
