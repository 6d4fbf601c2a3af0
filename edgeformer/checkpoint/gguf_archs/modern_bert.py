"""llama.cpp's `modern-bert`: RoPE, gated feed-forward networks, full attention in every n-th layer."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint.gguf_archs._common import FUSED_QKV, GELU_TABLE, Architecture
from edgeformer.checkpoint.gguf_archs._encoders import (
    encoder_config,
    encoder_keys,
    encoder_notes,
    pooling_of,
    without_pooler,
)
from edgeformer.errors import CheckpointError
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.rope import Rope
from edgeformer.models._inverse import Config, attention_in, attentions_in, gated_in, listed_windows, model_of, part
from edgeformer.models._names import Names, halves, named
from edgeformer.models._windows import FULL, SLIDING
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader

_TOP = {"embed": "token_embd", "embed_norm": "token_embd_norm", "norm": "output_norm"}
_BLOCK = {"attention_norm": "attn_norm", "attention.o": "attn_output", "ffn_norm": "ffn_norm", "ffn.down": "ffn_down"}
NAMES: Names = (
    named(_TOP) | named(_BLOCK, "layers.{i}.", "blk.{i}.") | FUSED_QKV | halves("layers.{i}.ffn", "blk.{i}.ffn_up")
)
_EVERY = 3
_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh", "silu": "silu"}
"""The file's activation -> what llama.cpp computes."""


def metadata(spec: Model) -> dict[str, Any]:
    """The metadata of a spec."""
    model = model_of(spec, Encoder)
    window, types = listed_windows(model)
    head_dim = attention_in(model.blocks[0]).head_dim
    ropes = {
        kind: part(x.position, Rope, dim=head_dim, theta=10_000.0, scaling=None)
        for kind, x in zip(types, attentions_in(model), strict=True)
    }
    full = next(iter(ropes.values())) if FULL not in ropes else ropes[FULL]
    ffn = gated_in(model)
    keys = encoder_keys(spec, ffn.hidden) | {"rope.freq_base": float(full.theta)}
    keys |= {"hidden_activation": "silu"} if ffn.act == "silu" else {}
    if window is None:
        return keys
    every = next((i for i in range(1, len(types)) if types[i] == FULL), len(types))
    return keys | {
        "rope.freq_base_swa": float(ropes.get(SLIDING, full).theta),
        "attention.sliding_window": 2 * (window - 1),  # both sides
        "attention.sliding_window_pattern": every,
    }


def config(reader: Reader) -> Config:
    """The Hugging Face config of a GGUF file."""
    config = encoder_config(reader)
    head_dim, theta = config["hidden_size"] // config["num_attention_heads"], reader.number("rope.freq_base", 10_000.0)
    if reader.size("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{reader.file}: rope.dimension_count must be {head_dim}, the channels of a head")
    act = reader.text("hidden_activation", "gelu")
    if act not in _ACTIVATIONS:
        raise CheckpointError(
            f"{reader.file}: hidden_activation is {act!r}; {' and '.join(_ACTIVATIONS)} are supported"
        )
    if (kind := reader.text("rope.scaling.type", "none")) != "none":
        raise CheckpointError(f"{reader.file}: RoPE scaling {kind!r} is not supported for ModernBERT")
    reader.ignore("attention.layer_norm_rms_epsilon")  # of the norms that it hasn't
    window, count = reader.optional("attention.sliding_window"), config["num_hidden_layers"]
    found = {
        "model_type": "modernbert",
        "norm_eps": reader.number("attention.layer_norm_epsilon"),
        "global_rope_theta": theta,
        "hidden_activation": _ACTIVATIONS[act],
    }
    if window is None:
        return config | found | {"layer_types": [FULL] * count}
    return (
        config
        | found
        | {
            "local_rope_theta": reader.positive("rope.freq_base_swa", theta),
            "local_attention": window,
            "layer_types": _pattern(reader, count),
        }
    )


def _pattern(reader: Reader, count: int) -> list[str]:
    """The kind of each layer: one number n stands for full attention in layers 0, n, 2n, ...; a list has a flag per layer."""
    said = reader.listed("attention.sliding_window_pattern", _EVERY)
    if isinstance(said, list):
        if len(said) < count:
            raise CheckpointError(
                f"{reader.file}: attention.sliding_window_pattern has {len(said)} entries for {count} layers"
            )
        return [SLIDING if slides else FULL for slides in said[:count]]
    return [SLIDING if i % said else FULL for i in range(count)]


ARCHITECTURE = Architecture(
    NAMES,
    metadata,
    config,
    computed=without_pooler,
    pooling=pooling_of,
    lacks=encoder_notes,
    called="modern-bert",
    compute=GELU_TABLE,
)
