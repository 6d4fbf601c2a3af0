"""Sizes for resizing a spec, and the arithmetic of derived sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgeformer.errors import InputError

FFN_MULTIPLE = 64
"""A derived feed-forward width is rounded to a multiple of this."""


@dataclass(frozen=True)
class Sizes:
    """New sizes for a spec; None keeps a size, or derives it from the given ones."""

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


def whole(value: float, name: str, sizes: Sizes) -> int:
    """Return a derived size as an integer.

    Raises:
        InputError: it isn't a whole number.
    """
    if value < 1 or abs(value - round(value)) > 1e-9:
        given = ", ".join(f"{k} {v}" for k, v in asdict(sizes).items() if v is not None)
        raise InputError(f"{given}: {name} would be {value:g}, not a whole number; give --{name.replace('_', '-')} too")
    return round(value)


def resized_ffn(hidden: int, sizes: Sizes, width: int) -> int:
    """A feed-forward hidden width: as given, or scaled with the model's width and rounded to a multiple of `FFN_MULTIPLE`."""
    if sizes.ffn is not None or sizes.width is None or sizes.width == width:
        return sizes.ffn or hidden
    return max(round(hidden * sizes.width / width / FFN_MULTIPLE), 1) * FFN_MULTIPLE
