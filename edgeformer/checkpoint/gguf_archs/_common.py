"""What an architecture of llama.cpp declares, and the metadata that most of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeformer.checkpoint.manifest import Compute
from edgeformer.errors import CheckpointError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mlp import MLP
from edgeformer.layers.rope import Rope, base_frequencies
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_yarn import YarnScaling
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
from edgeformer.models._shape import Unmapped, need
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
    rope_factors: the divisors of the RoPE frequencies, float32 [head_dim / 2], where GGUF stores them as a tensor.
    called: llama.cpp's name, where it isn't the file's.
    compute: precision -> the precision of llama.cpp's arithmetic, where it is coarser.
    """

    names: NameMap | Callable[[Any], NameMap]
    metadata: Callable[[Model], dict[str, Any]]
    config: Callable[[Reader], Config]
    interleaved: tuple[str, ...] = ()
    rope_factors: Callable[[Model], np.ndarray | None] = lambda spec: None
    called: str | None = None
    compute: Mapping[str, Compute] = field(default_factory=dict)

    def name_map(self, spec: Model) -> NameMap:
        """The names for a spec."""
        return self.names(spec) if callable(self.names) else self.names


ROPE_FACTORS = "rope_freqs.weight"
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


def rope_keys(position: Node | None, head_dim: int, kind: type[Rope] = Rope) -> dict[str, Any]:
    """RoPE's keys.

    Raises:
        Unmapped: a scaling that llama.cpp doesn't have.
    """
    rope = part(position, kind, dim=head_dim, theta=10_000.0, scaling=None)
    return {"rope.dimension_count": rope.dim, "rope.freq_base": float(rope.theta), **_scaling(rope)}


def _scaling(rope: Rope) -> dict[str, Any]:
    match rope.scaling:
        case None | Llama3Scaling():  # the latter's factors are a tensor
            return {}
        case LinearScaling(factor=factor):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        case YarnScaling() as s:
            usual = 0.1 * math.log(s.factor) + 1 if s.factor > 1 else 1.0
            need(
                abs(s.temperature - usual) < 1e-6,
                "llama.cpp derives YaRN's temperature from its factor; this spec's temperature differs",
            )
            need(
                (s.beta_fast, s.beta_slow) == (32.0, 1.0),
                "YaRN's beta_fast and beta_slow are not llama.cpp's (32 and 1)",
            )
            need(s.truncate, "llama.cpp rounds YaRN's ramp to whole channels; this spec doesn't (truncate)")
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(s.factor),
                "rope.scaling.original_context_length": s.original_context,
            }
        case other:
            raise Unmapped(f"llama.cpp has no {other.kind.removeprefix('rope_')} RoPE scaling here")


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


def rope_factors(spec: Model) -> np.ndarray | None:
    """The divisors of the RoPE frequencies, float32 `[head_dim / 2]`, for scalings that GGUF stores as a tensor."""
    position = rotated_in(model_of(spec, Decoder)).position
    if not isinstance(position, Rope) or not isinstance(position.scaling, Llama3Scaling):
        return None
    plain = base_frequencies(position.dim, position.theta)
    return (plain / position.scaling.frequencies(position.dim, position.theta)).astype(np.float32)


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


def rope_of(reader: Reader, dim: int, *, share: str | None = None) -> Config:
    """RoPE's config. `share` is the family's key for the part of each head that is rotated; None: all of it.

    Raises:
        CheckpointError: RoPE settings that no config can express.
    """
    config: Config = {"rope_theta": reader.number("rope.freq_base", 10_000.0)}
    turned = reader.size("rope.dimension_count", dim)
    if share is not None:
        config[share] = turned / dim
    elif turned != dim:
        raise CheckpointError(
            f"{reader.file}: rope.dimension_count is {turned}, but heads have {dim} channels; it must be equal"
        )
    kind, factor = reader.text("rope.scaling.type", "none"), reader.number("rope.scaling.factor", 0.0)
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{reader.file}: RoPE scaling {kind!r} is not supported; linear, yarn and llama3 are")
    if reader.has(ROPE_FACTORS):
        if factor not in (0.0, 1.0):
            raise CheckpointError(
                f"{reader.file} has both {ROPE_FACTORS} and RoPE scaling by {factor}; only one of them is supported"
            )
        config["rope_scaling"] = _llama3(reader, turned, config["rope_theta"])
    elif kind == "yarn":
        original = reader.size("rope.scaling.original_context_length", reader.size("context_length"))
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
    elif factor not in (0.0, 1.0):
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return config


def rms_epsilon(reader: Reader) -> Config:
    """An RMSNorm's epsilon."""
    return {"rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon")}


def layer_epsilon(reader: Reader, key: str) -> Config:
    """A LayerNorm's epsilon, under the family's key."""
    return {key: reader.number("attention.layer_norm_epsilon")}


def llama_config(reader: Reader, model_type: str, *, own_head_dim: bool = True) -> Config:
    """The config of architectures shaped like Llama's; `own_head_dim`: the family has the key head_dim.

    Raises:
        CheckpointError: RoPE settings that no config can express.
    """
    config = shape_config(reader, model_type) | rms_epsilon(reader)
    dim = head_dim(reader, config["hidden_size"], config["num_attention_heads"])
    return config | rope_of(reader, dim) | ({"head_dim": dim} if own_head_dim else {})


def _llama3(reader: Reader, dim: int, theta: float) -> dict[str, Any]:
    """Recover Llama 3's scaling from its factors: they are recomputed for the settings that models use, and must match."""
    found, plain = reader.read(ROPE_FACTORS).astype(np.float32), base_frequencies(dim, theta)
    if found.shape != plain.shape:
        raise CheckpointError(
            f"{reader.file}: {ROPE_FACTORS} has shape {list(found.shape)}; {dim} rotated channels need {list(plain.shape)}"
        )
    for original in (8192, *(2**n for n in range(5, 18))):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (2.0, 4.0), (1.0, 8.0)):
            rule = Llama3Scaling(
                factor=float(found.max()), low_freq_factor=low, high_freq_factor=high, original_context=original
            )
            if np.allclose(plain / rule.frequencies(dim, theta), found, rtol=1e-5):
                return {
                    "rope_type": "llama3",
                    "factor": rule.factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise CheckpointError(f"{reader.file}: {ROPE_FACTORS} doesn't match Llama 3's RoPE scaling for any usual setting")


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
