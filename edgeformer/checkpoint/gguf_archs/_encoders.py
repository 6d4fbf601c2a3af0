"""What llama.cpp's encoders share: hidden states or a pooled embedding come out, no logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeformer.checkpoint.gguf_archs._common import norm_keys
from edgeformer.errors import CheckpointError
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.learned import Learned
from edgeformer.layers.pooling import Pooling
from edgeformer.models._inverse import Config, attention_in, model_of
from edgeformer.models._shape import Unmapped
from edgeformer.spec import Layer, Model
from edgeformer.weights.gguf_file import Reader

POOLING = {"none": 0, "mean": 1, "cls": 2}
"""Pooling mode -> llama_pooling_type. Whoever asks for the vector normalises it: llama.cpp's own tools do."""


def encoder_keys(spec: Model, hidden: int) -> dict[str, Any]:
    """The metadata that encoders share; `hidden` is the feed-forward network's size."""
    model = model_of(spec, Encoder)
    mode = "none" if model.pooling is None else model.pooling.mode
    if isinstance(mode, tuple) or mode not in POOLING:
        raise Unmapped(f"llama.cpp pools by {' or '.join(POOLING)}, not by {mode}")
    return {
        "block_count": len(model.blocks),
        "context_length": model.context,
        "embedding_length": model.width,
        "feed_forward_length": hidden,
        "attention.head_count": attention_in(model.blocks[0]).heads,
        "attention.causal": False,
        "pooling_type": POOLING[mode],
        "vocab_size": model.vocab,
    } | norm_keys(model.embed_norm)


def encoder_config(reader: Reader) -> Config:
    """The config of sizes, in BERT's spelling.

    Raises:
        CheckpointError: heads that don't divide the width, or a causal encoder.
    """
    reader.ignore(
        "vocab_size", "pooling_type", "classifier.output_labels", "classifier.pooling_type"
    )  # a head has tensors
    width, heads = reader.size("embedding_length"), reader.size("attention.head_count")
    if width % heads:
        raise CheckpointError(
            f"{reader.file}: embedding_length is {width}, which is not a multiple of the {heads} heads"
        )
    if reader.flag("attention.causal", True):
        raise CheckpointError(f"{reader.file}: attention.causal is true; an encoder's attention is bidirectional")
    if reader.size("attention.head_count_kv", heads) != heads:
        raise CheckpointError(f"{reader.file}: an encoder has as many key heads as heads, {heads}")
    return {
        "hidden_size": width,
        "num_hidden_layers": reader.size("block_count"),
        "num_attention_heads": heads,
        "intermediate_size": reader.size("feed_forward_length"),
        "vocab_size": reader.rows("token_embd.weight"),
        "max_position_embeddings": reader.size("context_length"),
    }


def pooling_of(reader: Reader) -> Pooling | None:
    """The pooling that a file asks for.

    Raises:
        CheckpointError: a kind that edgeformer doesn't build.
    """
    kind = reader.optional("pooling_type")
    if kind is None:
        return None
    mode = next((name for name, number in POOLING.items() if number == kind), None)
    if mode is None:
        raise CheckpointError(f"{reader.file}: pooling_type is {kind}; edgeformer builds 1 (mean) and 2 (first token)")
    return Pooling(mode=mode)


def without_pooler(spec: Model) -> Model:
    """The encoder as llama.cpp has it: without BERT's pooler, and with positions from row 0 of their table."""
    if not isinstance(spec, Encoder):
        return spec
    positions: Layer | None = spec.positions
    if isinstance(positions, Learned):
        positions = replace(positions, offset=0)
    return replace(spec, pooler=False, positions=positions, counts_padding=True)


def encoder_notes(spec: Model) -> list[str]:
    """What an encoder's file lacks."""
    notes = []
    if isinstance(spec, Encoder) and spec.pooler:
        notes.append("the pooler (pooler_output) is not in the file: llama.cpp has none")
    if isinstance(spec, Encoder) and spec.token_types > 1:
        notes.append("llama.cpp gives every token the first text's type (token_type_ids = 0)")
    return notes
