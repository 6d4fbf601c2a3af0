"""The attention that Llama's descendants share, as their configs say it."""

from __future__ import annotations

from typing import Any

from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope


def rotary_attention(
    config: HfConfig,
    heads: int | None,
    context: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10_000.0,
    kind: type[Rope] = Rope,
    **parts: Any,
) -> tuple[GQA, int]:
    """Grouped heads with rotary positions and one flag for all biases, and the positions they reach.

    `heads` (None: the config must say it), `kv_heads` (None: as many as heads), `context` and `theta` are what a config without
    these keys means, `kind` is how positions pair channels, `parts` what a family adds. `head_dim` is the family's, where its
    configs don't say it or have a default of their own; None reads it, or divides the width.

    Raises:
        ConfigError: a value that a key can't have.
    """
    count = config.size("num_attention_heads") if heads is None else config.size("num_attention_heads", heads)
    head_dim = head_dim or config.optional_size("head_dim") or config.size("hidden_size") // count
    position, reach = rope(config, head_dim, config.size("max_position_embeddings", context), theta, kind=kind)
    bias = config.flag("attention_bias", False)
    attention = GQA(
        heads=count,
        kv_heads=config.optional_size("num_key_value_heads", kv_heads) or count,
        head_dim=head_dim,
        position=position,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", 0.0),
        **parts,
    )
    return attention, reach
