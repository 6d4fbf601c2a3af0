"""The attention that Llama's descendants share, read from their configs."""

from __future__ import annotations

from typing import TypedDict, TypeVar, Unpack

from edgeformer.errors import SpecError
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.rope import Rope
from edgeformer.models._config import HfConfig
from edgeformer.models._rope import rope
from edgeformer.spec import Layer, Norm, layers

Kind = TypeVar("Kind", bound=Layer)


class Parts(TypedDict, total=False):
    """Fields of `GQA` that not all of Llama's descendants set."""

    mask: Mask
    qk_norm: Norm | None
    scale: float | None
    clip: float | None
    softcap: float | None
    sinks: bool


def rotary_attention(
    config: HfConfig,
    heads: int | None,
    context: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10_000.0,
    kind: type[Rope] = Rope,
    **parts: Unpack[Parts],
) -> tuple[GQA, int]:
    """Grouped-query attention with RoPE and one flag for all biases, and the positions that it reaches.

    `heads` (None: the config must have it), `kv_heads` (None: as many as heads), `context` and `theta` are the defaults of these
    keys, `kind` is how RoPE pairs channels, `parts` are fields that a family adds. `head_dim` is the family's, where its configs
    lack the key or have their own default; None reads it, or divides the width by the heads.

    Raises:
        ConfigError: a key has an invalid value.
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


def attention_of(block: Layer, kind: type[Kind]) -> Kind:
    """A block's attention, for names that depend on its sizes.

    Raises:
        SpecError: it has none of this kind.
    """
    attention = next((layer for _, layer, _ in layers(block, 1) if isinstance(layer, kind)), None)
    if attention is None:
        raise SpecError(f"{block.kind}: the family's tensors are those of {kind.kind}, but it has no such attention")
    return attention
