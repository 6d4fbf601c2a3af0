"""A new spec from one that there is, with other sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgeformer.errors import InputError
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.learned import Learned
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rope import Rope
from edgeformer.layers.sinusoidal import Sinusoidal
from edgeformer.spec import Layer, Model, Node, layers

FFN_MULTIPLE = 64
"""What a network's width is rounded to where it follows from another size."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is to be different; None stays, or follows from what is given."""

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    vocab: int | None = None
    context: int | None = None
    tied: bool | None = None
    rope_theta: float | None = None


def derive(spec: Model, sizes: Sizes) -> Model:
    """The spec with other sizes.

    A new width keeps head_dim and scales the FFN with it, and the number of heads (and of key heads) where these were as wide as
    the model together. More layers go on with the pattern of those there are (windows, dense and sparse ones).

    Raises:
        InputError: a size that this architecture hasn't, or that does not divide.
        SpecError: sizes that don't fit each other.
    """
    if not isinstance(spec, (Decoder, Encoder)):
        raise InputError(f"new sizes are for decoders and encoders; this is a {spec.kind}")
    attentions = [layer for _, layer, _ in layers(spec) if isinstance(layer, GQA)]
    wants_heads = any(x is not None for x in (sizes.width, sizes.heads, sizes.kv_heads, sizes.head_dim))
    if wants_heads and not attentions:
        kinds = sorted({b.attention.kind for b in spec.blocks if hasattr(b, "attention")})  # type: ignore[attr-defined]
        raise InputError(f"heads and widths can be changed of gqa attention; this spec has {', '.join(kinds)}")
    if sizes.rope_theta is not None and not any(isinstance(layer, Rope) for _, layer, _ in layers(spec)):
        raise InputError("--rope-theta is for rotary positions, and this spec has none")
    ratio = 1.0 if sizes.width is None else sizes.width / spec.width

    def changed(node: Node) -> Node:
        if isinstance(node, GQA):
            return _attention(node, sizes, ratio if node.heads * node.head_dim == spec.width else 1.0)
        if isinstance(node, (Learned, Sinusoidal)) and sizes.context is not None:
            return replace(node, count=sizes.context)
        if isinstance(node, Rope) and sizes.rope_theta is not None:
            return replace(node, theta=sizes.rope_theta)
        if hasattr(node, "hidden") and (sizes.ffn is not None or ratio != 1):
            hidden: int = node.hidden  # type: ignore[attr-defined]
            return replace(node, hidden=sizes.ffn or _rounded(hidden * ratio))  # type: ignore[call-arg]
        return node

    made: Any = rebuilt(spec, changed)
    fields: dict[str, Any] = {
        "width": sizes.width,
        "vocab": sizes.vocab,
        "context": sizes.context,
        "tied": sizes.tied if isinstance(spec, Decoder) else None,
        "blocks": None if sizes.layers is None else _blocks(made.blocks, sizes.layers),
    }
    if sizes.layers is not None and made.order is not None:
        raise InputError("this spec runs its blocks more than once (order); give --layers to one that does not")
    return replace(made, **{name: value for name, value in fields.items() if value is not None})


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """A tree with `change` applied to every node, the inner ones first."""
    fields = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Node):
            fields[field.name] = rebuilt(value, change)
        elif isinstance(value, tuple) and any(isinstance(v, Node) for v in value):
            fields[field.name] = tuple(rebuilt(v, change) if isinstance(v, Node) else v for v in value)
    return change(replace(node, **{k: v for k, v in fields.items() if v != getattr(node, k)}) if fields else node)


def _attention(old: GQA, sizes: Sizes, ratio: float) -> GQA:
    head_dim = sizes.head_dim or old.head_dim
    heads = sizes.heads or _whole(old.heads * old.head_dim * ratio / head_dim, "heads", sizes)
    if sizes.kv_heads is not None:
        kv_heads = sizes.kv_heads
    else:  # as many queries to a key as before, or one key for all
        groups = old.heads // old.kv_heads
        kv_heads = 1 if old.kv_heads == 1 else _whole(heads / groups, "kv_heads", sizes)
    position = old.position
    if isinstance(position, Rope) and head_dim != old.head_dim:
        position = replace(position, dim=max(round(position.dim / old.head_dim * head_dim / 2) * 2, 2))
    elif isinstance(position, (Alibi, RelativeBias)):
        position = replace(position, heads=heads)
    return replace(old, heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=position)


def _whole(value: float, name: str, sizes: Sizes) -> int:
    if value < 1 or abs(value - round(value)) > 1e-9:
        given = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(sizes).items() if v is not None)
        raise InputError(
            f"{given}: {name} would be {value:g}, which is no whole number; give --{name.replace('_', '-')} too"
        )
    return round(value)


def _rounded(value: float) -> int:
    return max(round(value / FFN_MULTIPLE), 1) * FFN_MULTIPLE


def _blocks(blocks: tuple[Layer, ...], count: int) -> tuple[Layer, ...]:
    """The first `count`; more go on with the shortest pattern that the blocks repeat."""
    if count <= len(blocks):
        return blocks[:count]
    period = next(p for p in range(1, len(blocks) + 1) if all(a == b for a, b in zip(blocks, blocks[p:], strict=False)))
    out = list(blocks)
    while len(out) < count:
        out.append(out[-period])
    return tuple(out)
