"""Other sizes for a spec, and the arithmetic of those that follow from others."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgeformer.errors import InputError

FFN_MULTIPLE = 64
"""What a feed-forward network's width is rounded to where it follows from another size."""


@dataclass(frozen=True)
class Sizes:
    """Other sizes for a spec; None keeps a size, or lets it follow from those that are given."""

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
    """A size that follows from others, as a whole number.

    Raises:
        InputError: it isn't one.
    """
    if value < 1 or abs(value - round(value)) > 1e-9:
        given = ", ".join(f"{k} {v}" for k, v in asdict(sizes).items() if v is not None)
        raise InputError(
            f"{given}: {name} would be {value:g}, which is no whole number; give --{name.replace('_', '-')} too"
        )
    return round(value)


def resized_ffn(hidden: int, sizes: Sizes, width: int) -> int:
    """A network's hidden width: as given, or scaled with the model's width and rounded to `FFN_MULTIPLE`."""
    if sizes.ffn is not None or sizes.width is None or sizes.width == width:
        return sizes.ffn or hidden
    return max(round(hidden * sizes.width / width / FFN_MULTIPLE), 1) * FFN_MULTIPLE
