"""Which layers have sliding windows, as newer configs list them."""

from __future__ import annotations

from edgeformer.errors import ConfigError
from edgeformer.models._config import HfConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(config: HfConfig, count: int, default: list[str]) -> list[str]:
    """`layer_types`, or the family's default.

    Raises:
        ConfigError: the list has another kind of layer, or not one per layer.
    """
    types = config.take("layer_types", None)
    if types is None:
        return default
    if not isinstance(types, list) or len(types) != count or not {FULL, SLIDING}.issuperset(types):
        raise ConfigError(f"{config.where}: layer_types must name {FULL} or {SLIDING} for each of {count} layers")
    return types


def windows_by_type(config: HfConfig, count: int, window: int | None, default: list[str]) -> list[int | None]:
    """The window of each layer.

    Raises:
        ConfigError: a sliding layer without a window.
    """
    types = layer_types(config, count, default)
    if SLIDING in types and window is None:
        raise ConfigError(f"{config.where}: layer_types has {SLIDING}, but sliding_window is null")
    return [window if t == SLIDING else None for t in types]
