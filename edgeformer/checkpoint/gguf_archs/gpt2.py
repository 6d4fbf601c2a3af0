"""llama.cpp's `gpt2`: learned positions, LayerNorm, biases everywhere, GELU's tanh approximation."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import Architecture
from edgeformer.checkpoint.manifest import Compute
from edgeformer.models import gpt2
from edgeformer.models._shape import need
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import Part

NAMES: dict[str, str | Part] = {
    "embed.weight": "token_embd.weight",
    "position_embed.table.weight": "position_embd.weight",
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
for _kind in ("weight", "bias"):
    NAMES |= {
        f"layers.{{i}}.{ours}.{_kind}": f"blk.{{i}}.{theirs}.{_kind}"
        for ours, theirs in {
            "attention_norm": "attn_norm",
            "ffn_norm": "ffn_norm",
            "attention.o": "attn_output",
            "ffn.up": "ffn_up",
            "ffn.down": "ffn_down",
        }.items()
    }
    NAMES |= {
        f"layers.{{i}}.attention.{n}.{_kind}": Part(f"blk.{{i}}.attn_qkv.{_kind}", index, of=3)
        for index, n in enumerate("qkv")
    }

COMPUTE: dict[str, Compute] = {"fp32": "fp16", "bf16": "bf16"}
"""ggml looks GELU up in a table of fp16 values, whatever the precision of the weights."""


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec.

    Raises:
        Unmapped: the spec doesn't fit this architecture.
    """
    config = gpt2.config(spec)
    need(
        config["activation_function"] == "gelu_new",
        f"llama.cpp's gpt2 computes gelu_new; this spec has {config['activation_function']}",
    )
    return {
        "block_count": config["n_layer"],
        "context_length": spec.context,
        "embedding_length": spec.width,
        "feed_forward_length": config["n_inner"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "vocab_size": spec.vocab,
    }


def config(reader: Reader) -> dict[str, Any]:
    """The Hugging Face config of a GGUF file."""
    reader.ignore("vocab_size")
    return {
        "model_type": "gpt2",
        "n_layer": reader.size("block_count"),
        "n_positions": reader.size("context_length"),
        "n_embd": reader.size("embedding_length"),
        "n_inner": reader.size("feed_forward_length"),
        "n_head": reader.size("attention.head_count"),
        "layer_norm_epsilon": reader.number("attention.layer_norm_epsilon"),
        "vocab_size": reader.rows("token_embd.weight"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": not reader.has("output.weight"),
    }


ARCHITECTURE = Architecture(NAMES, metadata, config, compute=COMPUTE)
