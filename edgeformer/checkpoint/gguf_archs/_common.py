"""What an architecture of llama.cpp declares, and the metadata that most of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeformer.checkpoint.gguf_archs._rope import rope_keys, rope_of
from edgeformer.checkpoint.manifest import Compute
from edgeformer.errors import CheckpointError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mlp import MLP
from edgeformer.layers.pooling import Pooling
from edgeformer.models._inverse import (
    Config,
    attention_in,
    ffn_in,
    gated_in,
    listed_windows,
    model_of,
    part,
    rotated_in,
)
from edgeformer.models._names import KINDS, Names, named, side_by_side
from edgeformer.spec import Model, Node
from edgeformer.weights.binding import NameMap
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import Flat, Part, Shifted


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp. A file ends with `ARCHITECTURE = Architecture(...)`.

    names: canonical pattern -> GGUF name; a function of the spec where the cuts depend on sizes.
    metadata: a spec's metadata, without the architecture's prefix. It checks nothing but what would end the reading: `config` is
        applied to it, and has to give the spec again.
    config: the Hugging Face config of what llama.cpp computes for a file.
    interleaved: linear maps whose rows llama.cpp needs reordered, since it rotates adjacent channels.
    spellings: names in older files, a map for each.
    rope_factors: the divisors of the RoPE frequencies that GGUF stores as tensors (`FACTORS`), by name.
    called: llama.cpp's name, where it isn't the file's.
    computed: the spec as llama.cpp has it, without parts that it leaves out; of what is written, and of what is read.
    lacks: notes on what was left out of a spec, for the user.
    copies: canonical names in `computed`'s spec -> the name in the original, and the factor, of tensors that are scaled copies.
    pooling: an encoder file's pooling.
    remarks: notes on a file that is read.
    around: metadata outside the architecture's prefix.
    ignored: pattern of GGUF names that are read by nothing -> the reason, as in `Family`.
    compute: precision -> the precision of llama.cpp's arithmetic, where it is coarser.
    """

    names: NameMap | Callable[[Any], NameMap]
    metadata: Callable[[Model], dict[str, Any]]
    config: Callable[[Reader], Config]
    interleaved: tuple[str, ...] = ()
    spellings: Callable[[Any], Sequence[NameMap]] = lambda spec: []
    rope_factors: Callable[[Model], dict[str, np.ndarray]] = lambda spec: {}
    called: str | None = None
    computed: Callable[[Model], Model] = lambda spec: spec
    lacks: Callable[[Model], list[str]] = lambda spec: []
    copies: Callable[[Model], dict[str, tuple[str, float]]] = lambda spec: {}
    pooling: Callable[[Reader], Pooling | None] = lambda reader: None
    remarks: Callable[[Reader], list[str]] = lambda reader: []
    around: Callable[[Model], dict[str, Any]] = lambda spec: {}
    ignored: Mapping[str, str] = field(default_factory=dict)
    compute: Mapping[str, Compute] = field(default_factory=dict)

    def name_map(self, spec: Model) -> NameMap:
        """The names for a spec."""
        return self.names(spec) if callable(self.names) else self.names


GELU_TABLE: dict[str, Compute] = {"fp32": "fp16", "bf16": "bf16"}
"""ggml looks GELU up in a table of fp16 values, whatever the precision of the weights."""
_TOP = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
_BLOCK = {
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def names_with(**block: str) -> Names:
    """llama.cpp's usual names, and others in blocks; `__` in a key stands for a dot."""
    more = {key.replace("__", "."): name for key, name in block.items()}
    return named(_TOP) | named(_BLOCK | more, "layers.{i}.", "blk.{i}.")


def shifted_norms(names: Names) -> Names:
    """The names of Gemma's architectures: llama.cpp's norms scale by the stored weight, Gemma's by one more than theirs."""
    norms = {ours: stored for ours, stored in names.items() if ours.endswith("norm.weight") and isinstance(stored, str)}
    return {**names, **{ours: Shifted(stored) for ours, stored in norms.items()}}


LLAMA_NAMES = names_with()
FUSED_QKV: Names = {
    f"layers.{{i}}.attention.{n}.{kind}": Part(f"blk.{{i}}.attn_qkv.{kind}", index, of=3)
    for index, n in enumerate("qkv")
    for kind in KINDS
}
"""q, k and v as one matrix, one after the other."""


def row_per_head(a: GQA) -> Names:
    """Norms of queries and keys whose weights are stored as a matrix, a row per head."""
    counts = (("q", a.heads), ("k", a.kv_heads))
    return {f"layers.{{i}}.attention.{n}_norm.weight": Flat(f"blk.{{i}}.attn_{n}_norm.weight", c) for n, c in counts}


def grouped_qkv(a: GQA) -> Names:
    """q, k and v as one matrix, one after the other, with fewer key heads than heads."""
    sizes = {"q": a.heads * a.head_dim, "k": a.kv_heads * a.head_dim, "v": a.kv_heads * a.head_dim}
    return side_by_side("layers.{i}.attention", "blk.{i}.attn_qkv", sizes)


EXPERTS = {
    f"layers.{{i}}.ffn.{ours}.weight": f"blk.{{i}}.ffn_{theirs}.weight"
    for ours, theirs in {"router": "gate_inp", "gate": "gate_exps", "up": "up_exps", "down": "down_exps"}.items()
}
"""Names of a mixture of experts, stacked."""


def shape_keys(spec: Model, hidden: int) -> dict[str, Any]:
    """Sizes that all architectures share; `hidden` is the feed-forward network's."""
    model = model_of(spec, Decoder)
    a = rotated_in(model)
    return {
        "block_count": len(model.blocks),
        "context_length": model.context,
        "embedding_length": model.width,
        "feed_forward_length": hidden,
        "attention.head_count": a.heads,
        "attention.head_count_kv": a.kv_heads,
        "vocab_size": model.vocab,
    }


def head_keys(a: GQA) -> dict[str, Any]:
    """Channels of a head."""
    return {"attention.key_length": a.head_dim, "attention.value_length": a.head_dim}


def norm_keys(norm: Node | None) -> dict[str, Any]:
    """The epsilon, under the key of the norm's kind."""
    kind = "layer_norm_epsilon" if norm is None or "layer_norm" in norm.kind else "layer_norm_rms_epsilon"
    return {f"attention.{kind}": float(getattr(norm, "eps", 1e-5))}


def llama_metadata(spec: Model) -> dict[str, Any]:
    """The metadata of architectures shaped like Llama's."""
    model = model_of(spec, Decoder)
    a = rotated_in(model)
    shape = shape_keys(spec, gated_in(model).hidden) | head_keys(a) | norm_keys(model.norm)
    return shape | rope_keys(a.position, a.head_dim)


def plain_metadata(spec: Model) -> dict[str, Any]:
    """The metadata of architectures with rotated heads and an ungated feed-forward network."""
    model, a = model_of(spec, Decoder), first_attention(spec)
    ffn = part(ffn_in(model.blocks[0]), MLP, hidden=4 * model.width, act="gelu_tanh")
    return shape_keys(spec, ffn.hidden) | norm_keys(model.norm) | rope_keys(a.position, a.head_dim)


def shape_config(reader: Reader, model_type: str) -> Config:
    """The config of sizes, in Llama's spelling, without norms."""
    count = reader.size("attention.head_count")
    reader.ignore("vocab_size")
    return {
        "model_type": model_type,
        "hidden_size": reader.size("embedding_length"),
        "num_hidden_layers": reader.size("block_count"),
        "num_attention_heads": count,
        "num_key_value_heads": reader.size("attention.head_count_kv", count),
        "intermediate_size": reader.size("feed_forward_length"),
        "vocab_size": reader.rows("token_embd.weight"),
        "max_position_embeddings": reader.size("context_length"),
        "tie_word_embeddings": not reader.has("output.weight"),
        "hidden_act": "silu",
    }


def head_dim(reader: Reader, width: int, heads: int) -> int:
    """Channels of a head.

    Raises:
        CheckpointError: values have another number.
    """
    dim = reader.size("attention.key_length", max(width // heads, 1))
    if (found := reader.size("attention.value_length", dim)) != dim:
        raise CheckpointError(
            f"{reader.file}: attention.value_length is {found}, but heads have {dim} channels; it must be equal"
        )
    return dim


def even_heads(reader: Reader, config: Config) -> int:
    """Channels of a head in architectures that divide the width by the heads.

    Raises:
        CheckpointError: the width is not a multiple of the heads.
    """
    dim, rest = divmod(config["hidden_size"], config["num_attention_heads"])
    if rest:
        raise CheckpointError(
            f"{reader.file}: embedding_length is {config['hidden_size']}, which is not a multiple of the"
            f" {config['num_attention_heads']} heads"
        )
    return dim


def rms_epsilon(reader: Reader) -> Config:
    """An RMSNorm's epsilon."""
    return {"rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon")}


def layer_epsilon(reader: Reader, key: str) -> Config:
    """A LayerNorm's epsilon, under the family's key."""
    return {key: reader.number("attention.layer_norm_epsilon")}


def llama_config(reader: Reader, model_type: str, *, own_head_dim: bool = True, longrope: bool = False) -> Config:
    """The config of architectures shaped like Llama's; `own_head_dim`: the family has the key head_dim; `longrope`: the
    architecture reads LongRoPE's factors.

    Raises:
        CheckpointError: RoPE settings that no config can express.
    """
    config = shape_config(reader, model_type) | rms_epsilon(reader)
    dim = head_dim(reader, config["hidden_size"], config["num_attention_heads"])
    return config | rope_of(reader, dim, longrope=longrope) | ({"head_dim": dim} if own_head_dim else {})


def biases(reader: Reader) -> Config:
    """attention_bias and mlp_bias, from the tensors."""
    return {"attention_bias": reader.has("blk.0.attn_q.bias"), "mlp_bias": reader.has("blk.0.ffn_up.bias")}


def first_attention(spec: Model) -> GQA:
    """The first block's attention."""
    return attention_in(model_of(spec, Decoder).blocks[0])


def window_of(spec: Model) -> int | None:
    """The size of sliding windows; None where no layer has one that is narrower than the context."""
    model = model_of(spec, Decoder)
    window, _ = listed_windows(model)
    return None if window is None or window >= model.context else window
