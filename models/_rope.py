"""RoPE settings of Hugging Face configs, in both spellings.

transformers 4: `rope_theta` + `rope_scaling: {"type" or "rope_type": ..., ...}`; transformers 5: `rope_parameters:
{"rope_theta": ..., "rope_type": ..., ...}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.layers.rope import Rope, RopeScaling
from edgeformer.layers.rope_dynamic import DynamicScaling
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.models._config import HfConfig
from edgeformer.models._shape import Unmapped


def rope(
    config: HfConfig,
    head_dim: int,
    context: int,
    theta: float = 10_000.0,
    *,
    partial: float | None = None,
    kind: type[Rope] = Rope,
) -> tuple[Rope, int]:
    """The RoPE of a config, and the positions that it reaches. `context` is the config's max_position_embeddings.

    A YaRN or dynamic scaling whose original length *is* max_position_embeddings reaches `factor` times that.

    `theta` and `partial` (the share of head_dim that is rotated; None: a family that rotates whole heads) are the family's
    defaults, `kind` is how it pairs channels.

    Raises:
        ConfigError: an unknown rope_type, or a parameter that its type doesn't have.
    """
    data = dict(config.take("rope_parameters", None) or {})
    old = dict(config.take("rope_scaling", None) or {})
    data |= {k: v for k, v in old.items() if k not in data}
    theta = float(data.pop("rope_theta", config.take("rope_theta", theta)))
    outside = config.take("partial_rotary_factor", None)
    share = float(data.pop("partial_rotary_factor", (partial or 1.0) if outside is None else outside))
    if partial is None and share != 1.0:
        raise ConfigError(
            f"{config.where}: {config.model_type} rotates whole heads; partial_rotary_factor must be 1, got {share}"
        )
    outer = config.take("original_max_position_embeddings", None)
    scaling = read_scaling(config, data, context, outer)
    if isinstance(scaling, (YarnScaling, DynamicScaling)) and scaling.original_context == context:
        context = math.floor(scaling.factor * context)
    return kind(dim=int(head_dim * share), theta=theta, scaling=scaling), context


def read_scaling(config: HfConfig, data: dict[str, Any], context: int, outer: int | None = None) -> RopeScaling | None:
    """The scaling that RoPE parameters (without theta) describe; `outer` is the original length from the config's own key.

    Raises:
        ConfigError: an unknown rope_type, or a parameter that its type doesn't have.
    """
    named = data.pop("rope_type", None)
    legacy = data.pop("type", None)
    kind = named or legacy or "default"
    original = data.pop("original_max_position_embeddings", None)
    scaling = _scaling(kind, data, context, outer or original, config)
    if data:
        raise ConfigError(
            f"{config.where}: rope parameters of type {kind!r} have unsupported keys: {', '.join(sorted(data))}"
        )
    return scaling


def _scaling(kind: str, data: dict[str, Any], context: int, original: int | None, config: HfConfig) -> Any:
    def need(key: str) -> Any:
        if data.get(key) is None:
            raise ConfigError(f"{config.where}: rope_type {kind!r} needs {key!r}")
        return data.pop(key)

    match kind:
        case "default" | "mrope":
            if kind == "mrope":
                raise ConfigError(f"{config.where}: rope_type 'mrope' (multimodal) is not supported")
            return None
        case "linear":
            return LinearScaling(factor=float(need("factor")))
        case "dynamic":
            return DynamicScaling(factor=float(need("factor")), original_context=context)
        case "llama3":
            return Llama3Scaling(
                factor=float(need("factor")),
                low_freq_factor=float(need("low_freq_factor")),
                high_freq_factor=float(need("high_freq_factor")),
                original_context=int(original or context),
            )
        case "yarn":
            return _yarn(data, context, original or context)
        case "longrope" | "su":
            return _longrope(data, context, original or context, need)
    raise ConfigError(
        f"{config.where}: rope_type {kind!r} is not known; known are default, linear, dynamic, llama3, yarn, longrope"
    )


def _yarn(data: dict[str, Any], context: int, original: int) -> RopeScaling | None:
    factor = data.pop("factor", None) or context / original
    temperature, mscale, mscale_all = (data.pop(k, None) for k in ("attention_factor", "mscale", "mscale_all_dim"))

    def heat(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if temperature is None:
        temperature = heat(mscale) / heat(mscale_all) if mscale and mscale_all else heat(1.0)
    if factor == 1.0 and temperature == 1.0:  # no scaling: mlx-lm's deepseek_v2 can't read its absence
        return None
    return YarnScaling(
        factor=float(factor),
        original_context=int(original),
        temperature=float(temperature),
        beta_fast=float(data.pop("beta_fast", None) or 32.0),
        beta_slow=float(data.pop("beta_slow", None) or 1.0),
        truncate=bool(data.pop("truncate", True)),
    )


def _longrope(data: dict[str, Any], context: int, original: int, need: Callable[[str], Any]) -> RopeScaling | None:
    factor, temperature = data.pop("factor", None) or context / original, data.pop("attention_factor", None)
    if temperature is None:
        temperature = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = (tuple(map(float, need(key))) for key in ("short_factor", "long_factor"))
    if {*short, *long} == {1.0} and temperature == 1.0:  # no scaling: mlx-lm's minicpm3 can't read its absence
        return None
    return LongRopeScaling(
        short_factor=short,
        long_factor=long,
        original_context=int(original),
        temperature=float(temperature),
    )


def rope_config(rope: Rope) -> dict[str, Any]:
    """The inverse of `rope`: `rope_theta` and, where there is a scaling, `rope_scaling` in transformers' spelling.

    Raises:
        Unmapped: a scaling that no config can express.
    """
    out: dict[str, Any] = {"rope_theta": rope.theta}
    match rope.scaling:
        case None:
            return out
        case LinearScaling(factor=factor):
            scaling: dict[str, Any] = {"rope_type": "linear", "factor": factor}
        case DynamicScaling() as s:
            scaling = {"rope_type": "dynamic", "factor": s.factor}
        case Llama3Scaling() as s:
            scaling = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }
        case YarnScaling() as s:
            scaling = {
                "rope_type": "yarn",
                "factor": s.factor,
                "attention_factor": s.temperature,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.truncate,
                "original_max_position_embeddings": s.original_context,
            }
        case LongRopeScaling() as s:
            scaling = {
                "rope_type": "longrope",
                "short_factor": list(s.short_factor),
                "long_factor": list(s.long_factor),
                "attention_factor": s.temperature,
                "original_max_position_embeddings": s.original_context,
            }
        case other:
            raise Unmapped(f"transformers has no RoPE scaling of kind {other.kind}")
    return out | {"rope_scaling": scaling}
