"""RoPE in GGUF files: metadata, and frequency factors that are stored as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mla import MLA
from edgeformer.layers.rope import Rope, RopeScaling, base_frequencies
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.models._inverse import Config, part
from edgeformer.models._shape import Unmapped, need
from edgeformer.spec import Model, Node, layers
from edgeformer.weights.gguf_file import Reader

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQUENCIES, LONG, SHORT)
"""Tensors with divisors of the RoPE frequencies, float32 `[rotated channels / 2]`: of Llama 3's scaling, and of LongRoPE's."""
_BETAS = {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0, "rope.scaling.yarn_ext_factor": 1.0}
"""YaRN's settings that llama.cpp has as constants in these architectures, whatever a file's metadata says."""


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
            need(
                (s.beta_fast, s.beta_slow) == (32.0, 1.0),
                "YaRN's beta_fast and beta_slow are not llama.cpp's (32 and 1)",
            )
            need(s.truncate, "llama.cpp rounds YaRN's ramp to whole channels; this spec doesn't (truncate)")
            more = s.temperature / yarn_temperature(s.factor)
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(s.factor),
                "rope.scaling.original_context_length": s.original_context,
                **({} if abs(more - 1) < 1e-6 else {"rope.scaling.attn_factor": float(more)}),
            }
        case LongRopeScaling() as s:
            return {
                "rope.scaling.type": "longrope",
                "rope.scaling.original_context_length": s.original_context,
                "rope.scaling.attn_factor": float(s.temperature),
            }
        case other:
            raise Unmapped(f"llama.cpp has no {other.kind.removeprefix('rope_')} RoPE scaling here")


def yarn_temperature(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature for a factor (eq. 22 of the paper), with DeepSeek's weight (mscale)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rope_factors(spec: Model) -> dict[str, np.ndarray]:
    """The factors that GGUF stores as tensors, by tensor name; empty for scalings that metadata describes."""
    position = position_of(spec)
    if not isinstance(position, Rope):
        return {}
    match position.scaling:
        case Llama3Scaling() as s:
            plain = base_frequencies(position.dim, position.theta)
            return {FREQUENCIES: (plain / s.frequencies(position.dim, position.theta)).astype(np.float32)}
        case LongRopeScaling() as s:
            return {LONG: np.array(s.long_factor, np.float32), SHORT: np.array(s.short_factor, np.float32)}
        case _:
            return {}


def position_of(spec: Model) -> Node | None:
    """The first attention's position; None where it has none."""
    return next((x.position for _, x, _ in layers(spec) if isinstance(x, (GQA, MLA))), None)


def scaling_of(spec: Model) -> RopeScaling | None:
    """The first attention's RoPE scaling."""
    position = position_of(spec)
    return position.scaling if isinstance(position, Rope) else None


def rope_of(reader: Reader, dim: int, *, share: str | None = None, longrope: bool = False) -> Config:
    """RoPE's config. `share` is the family's key for the part of each head that is rotated; None: all of it. `longrope`:
    the architecture reads LongRoPE's factors.

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
    reader.ignore("rope.scaling.finetuned")
    if longrope and reader.has(LONG):
        config["rope_scaling"] = _longrope(reader, turned)
        return config
    kind, factor = (
        reader.text("rope.scaling.type", "linear"),
        reader.number("rope.scaling.factor", 0.0),
    )  # llama.cpp's default
    factor = 0.0 if kind == "none" else factor
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{reader.file}: RoPE scaling {kind!r} is not supported; linear, yarn and llama3 are")
    if reader.has(FREQUENCIES):
        if factor not in (0.0, 1.0):
            raise CheckpointError(
                f"{reader.file} has both {FREQUENCIES} and RoPE scaling by {factor}; only one of them is supported"
            )
        config["rope_scaling"] = _llama3(reader, turned, config["rope_theta"])
    elif kind == "yarn":
        config["rope_scaling"] = _yarn(reader, factor)
    elif factor not in (0.0, 1.0):
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        reader.ignore("rope.scaling.original_context_length")  # Phi-3's files always have it
    return config


def _yarn(reader: Reader, factor: float) -> dict[str, Any]:
    for key, constant in _BETAS.items():
        if (found := reader.number(key, constant)) != constant:
            raise CheckpointError(
                f"{reader.file}: {key} is {found}; llama.cpp computes {constant} for this architecture whatever the file says,"
                " so the file is not what its model needs"
            )
    reader.ignore("rope.scaling.yarn_attn_factor")  # overwritten by llama.cpp
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": _original_context(reader),
    }
    more = reader.number("rope.scaling.attn_factor", 1.0)
    return found if more == 1 else found | {"attention_factor": yarn_temperature(factor) * more}


def _original_context(reader: Reader) -> int:
    return reader.size("rope.scaling.original_context_length", reader.size("context_length"))


def _longrope(reader: Reader, dim: int) -> dict[str, Any]:
    reader.ignore("rope.scaling.type")
    if (factor := reader.number("rope.scaling.factor", 1.0)) not in (0.0, 1.0):
        raise CheckpointError(
            f"{reader.file} has both {LONG} and RoPE scaling by {factor}; only one of them is supported"
        )
    found = {}
    for name, key in ((LONG, "long_factor"), (SHORT, "short_factor")):
        if not reader.has(name):
            raise CheckpointError(f"{reader.file} has {LONG} without {SHORT}; LongRoPE needs both")
        values = reader.read(name).astype(np.float32)
        if values.shape != (dim // 2,):
            raise CheckpointError(
                f"{reader.file}: {name} has shape {list(values.shape)}; {dim} rotated channels need [{dim // 2}]"
            )
        if not (values > 0).all():
            raise CheckpointError(f"{reader.file}: {name} holds {values.min()}; factors must be positive")
        found[key] = [float(str(v)) for v in values]
    return {
        "rope_type": "longrope",
        **found,
        "attention_factor": reader.number("rope.scaling.attn_factor", 1.0),
        "original_max_position_embeddings": _original_context(reader),
    }


def _llama3(reader: Reader, dim: int, theta: float) -> dict[str, Any]:
    """Recover Llama 3's scaling from its factors: they are recomputed for the settings that models use, and must match."""
    found, plain = reader.read(FREQUENCIES).astype(np.float32), base_frequencies(dim, theta)
    if found.shape != plain.shape:
        raise CheckpointError(
            f"{reader.file}: {FREQUENCIES} has shape {list(found.shape)}; {dim} rotated channels need {list(plain.shape)}"
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
    raise CheckpointError(f"{reader.file}: {FREQUENCIES} doesn't match Llama 3's RoPE scaling for any usual setting")
