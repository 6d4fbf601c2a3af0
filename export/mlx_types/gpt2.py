"""mlx-lm's `gpt2`: learned positions, LayerNorm, biases everywhere, GELU's tanh approximation, four times the width."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mask import Mask
from edgeformer.layers.mlp import MLP
from edgeformer.models._shape import need
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config of a spec.

    Raises:
        Unmapped: it is none of this type.
    """
    need(isinstance(spec, Decoder), f"it is a {spec.kind}, no decoder")
    assert isinstance(spec, Decoder)
    block = spec.blocks[0]
    need(all(b == block for b in spec.blocks) and isinstance(block, Block), "blocks differ or are of another kind")
    assert isinstance(block, Block)
    a, ffn, norm = block.attention, block.ffn, spec.norm
    need(spec.positions is not None and spec.tied, "positions are not learned, or the head is not the embedding")
    need(isinstance(norm, LayerNorm) and norm.bias and block.norm == norm, "norms are not one LayerNorm with bias")
    need(isinstance(a, GQA) and isinstance(ffn, MLP), "attention or feed-forward network are of another kind")
    assert isinstance(a, GQA) and isinstance(ffn, MLP) and isinstance(norm, LayerNorm) and spec.positions is not None
    plain = GQA(
        heads=a.heads, kv_heads=a.heads, head_dim=spec.width // a.heads, mask=Mask(), bias=True, output_bias=True,
        dropout=a.dropout,
    )  # fmt: skip
    need(a == plain, "attention is not GPT-2's")
    need(ffn.act == "gelu_tanh", f"mlx-lm's gpt2 computes gelu_new whatever the config says, this is {ffn.act}")
    need(ffn.hidden == 4 * spec.width, "mlx-lm's gpt2 ignores n_inner: the inner width is four times n_embd")
    need(ffn.bias and block.cross is None, "the feed-forward network has no biases, or there is cross-attention")
    return {
        "model_type": "gpt2",
        "n_ctx": spec.context,
        "n_embd": spec.width,
        "n_head": a.heads,
        "n_layer": len(spec.blocks),
        "n_positions": spec.positions.count,
        "layer_norm_epsilon": norm.eps,
        "vocab_size": spec.vocab,
        "activation_function": "gelu_new",
        "resid_pdrop": block.dropout,
        "attn_pdrop": a.dropout,
        "embd_pdrop": spec.dropout,
        "initializer_range": spec.init.std,
    }
