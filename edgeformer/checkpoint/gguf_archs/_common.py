"""What llama.cpp's Llama-shaped architectures have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeformer.checkpoint.manifest import Compute
from edgeformer.errors import CheckpointError
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope, base_frequencies
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.models._shape import Unmapped, llama_shaped, need
from edgeformer.spec import Model
from edgeformer.weights.gguf_file import Reader
from edgeformer.weights.parts import Part


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp. A file ends with `ARCHITECTURE = Architecture(...)`.

    names: canonical pattern -> GGUF name.
    metadata: a spec's metadata, without the architecture's prefix; raises `Unmapped` for a spec that doesn't fit.
    config: the Hugging Face config that is equivalent to a file's metadata.
    interleaved: linear maps whose rows llama.cpp needs reordered, since it rotates adjacent channels.
    rope_factors: the divisors of the RoPE frequencies, float32 [head_dim / 2], where GGUF stores them as a tensor.
    compute: precision -> the precision of llama.cpp's arithmetic, where it is coarser.
    """

    names: Mapping[str, str | Part]
    metadata: Callable[[Model], dict[str, Any]]
    config: Callable[[Reader], dict[str, Any]]
    interleaved: tuple[str, ...] = ()
    rope_factors: Callable[[Model], np.ndarray | None] = lambda spec: None
    compute: Mapping[str, Compute] = field(default_factory=dict)


ROPE_FACTORS = "rope_freqs.weight"
LLAMA_NAMES = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
    "layers.{i}.attention_norm.weight": "blk.{i}.attn_norm.weight",
    "layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
} | {
    f"layers.{{i}}.{ours}.{kind}": f"blk.{{i}}.{theirs}.{kind}"
    for ours, theirs in {
        "attention.q": "attn_q",
        "attention.k": "attn_k",
        "attention.v": "attn_v",
        "attention.o": "attn_output",
        "attention.q_norm": "attn_q_norm",
        "attention.k_norm": "attn_k_norm",
        "ffn.gate": "ffn_gate",
        "ffn.up": "ffn_up",
        "ffn.down": "ffn_down",
    }.items()
    for kind in ("weight", "bias")
}


def llama_metadata(spec: Model) -> tuple[dict[str, Any], GQA, GLU]:
    """The metadata that all of them share, the attention, and the feed-forward network.

    Raises:
        Unmapped: the spec isn't Llama-shaped, or has a property that llama.cpp can't express.
    """
    config, attentions, ffn = llama_shaped(spec)
    first = attentions[0]
    need(ffn.act == "silu", f"llama.cpp's gated FFN is SwiGLU here; this spec's activation is {ffn.act}")
    for window in {a.mask.window for a in attentions if a.mask.window is not None}:
        need(window >= spec.context, f"the spec has sliding windows ({window}), which this architecture lacks")
    assert isinstance(first.position, Rope)
    need(first.position.dim == first.head_dim, f"only {first.position.dim} of {first.head_dim} channels are rotated")
    data = {
        "block_count": config["num_hidden_layers"],
        "context_length": spec.context,
        "embedding_length": spec.width,
        "feed_forward_length": ffn.hidden,
        "attention.head_count": first.heads,
        "attention.head_count_kv": first.kv_heads,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": first.head_dim,
        "rope.freq_base": float(first.position.theta),
        "vocab_size": spec.vocab,
        **_scaling(first.position),
    }
    return data, first, ffn


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


def rope_factors(spec: Model) -> np.ndarray | None:
    """The divisors of the RoPE frequencies, float32 `[head_dim / 2]`, for scalings that GGUF stores as a tensor."""
    position = llama_shaped(spec)[1][0].position
    if not isinstance(position, Rope) or not isinstance(position.scaling, Llama3Scaling):
        return None
    plain = base_frequencies(position.dim, position.theta)
    return (plain / position.scaling.frequencies(position.dim, position.theta)).astype(np.float32)


def llama_config(reader: Reader, model_type: str) -> dict[str, Any]:
    """The Hugging Face config of a Llama-shaped GGUF.

    Raises:
        CheckpointError: RoPE settings that no config can express.
    """
    heads = reader.size("attention.head_count")
    width = reader.size("embedding_length")
    config = {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": reader.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.size("attention.head_count_kv", heads),
        "head_dim": reader.size("attention.key_length", width // heads),
        "intermediate_size": reader.size("feed_forward_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": reader.rows("token_embd.weight"),
        "max_position_embeddings": reader.size("context_length"),
        "rope_theta": reader.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": not reader.has("output.weight"),
        "hidden_act": "silu",
    }
    reader.ignore("vocab_size")
    for key in ("rope.dimension_count", "attention.value_length"):
        if (found := reader.size(key, config["head_dim"])) != config["head_dim"]:
            raise CheckpointError(
                f"{reader.file}: {key} is {found}, but heads have {config['head_dim']} channels; it must be equal"
            )
    kind, factor = reader.text("rope.scaling.type", "none"), reader.number("rope.scaling.factor", 0.0)
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{reader.file}: RoPE scaling {kind!r} is not supported; linear, yarn and llama3 are")
    if reader.has(ROPE_FACTORS):
        if factor not in (0.0, 1.0):
            raise CheckpointError(
                f"{reader.file} has both {ROPE_FACTORS} and RoPE scaling by {factor}; only one of them is supported"
            )
        config["rope_scaling"] = _llama3(reader, config)
    elif kind == "yarn":
        original = reader.size("rope.scaling.original_context_length", config["max_position_embeddings"])
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        config["rope_scaling"] = scaling
    elif factor not in (0.0, 1.0):
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return config


def _llama3(reader: Reader, config: dict[str, Any]) -> dict[str, Any]:
    """Recover Llama 3's scaling from its factors: they are recomputed for the settings that models use, and must match."""
    found = reader.read(ROPE_FACTORS).astype(np.float32)
    rotary = config["head_dim"], config["rope_theta"]
    plain = base_frequencies(*rotary)
    for original in (8192, *(2**n for n in range(5, 18))):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (2.0, 4.0), (1.0, 8.0)):
            rule = Llama3Scaling(
                factor=float(found.max()), low_freq_factor=low, high_freq_factor=high, original_context=original
            )
            if np.allclose(plain / rule.frequencies(*rotary), found, rtol=1e-5):
                return {
                    "rope_type": "llama3",
                    "factor": rule.factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise CheckpointError(f"{reader.file}: {ROPE_FACTORS} doesn't match Llama 3's RoPE scaling for any usual setting")
