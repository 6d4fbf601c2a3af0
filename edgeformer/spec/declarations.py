"""What a layer declares: parameters, children, channels that can be rescaled, keys and values that it shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeformer.spec.nodes import Layer


@dataclass(frozen=True)
class Linear:
    """`y = x @ weight.T + bias`. Tensors: weight `[outputs, inputs]`, bias `[outputs]`.

    `residual` marks a projection that writes into the residual stream: GPT-2's initialisation scales it by depth.
    """

    inputs: int
    outputs: int
    bias: bool = False
    residual: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        weight = {"weight": (self.outputs, self.inputs)}
        return weight | {"bias": (self.outputs,)} if self.bias else weight


@dataclass(frozen=True)
class Stacked:
    """`count` bias-free linear maps held in one tensor `[count, outputs, inputs]` (experts; per-head maps of MLA).

    `active`: how many of them multiply a token (the chosen experts); None for all.
    """

    count: int
    inputs: int
    outputs: int
    residual: bool = False
    active: int | None = None

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        return {"weight": (self.count, self.outputs, self.inputs)}


@dataclass(frozen=True)
class Vector:
    """One tensor `[size]`, initialised with `fill` (1 for a norm's weight, 0 for its bias)."""

    size: int
    fill: float = 1.0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        return {"": (self.size,)}


@dataclass(frozen=True)
class Table:
    """A lookup table `[rows, width]`: an embedding. Its handle maps ids to rows; `as_linear` is the tied head."""

    rows: int
    width: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        return {"weight": (self.rows, self.width)}


@dataclass(frozen=True)
class Const:
    """A numpy constant made at build time; not a weight, never saved."""

    make: Callable[[], Any]


@dataclass(frozen=True)
class Dropout:
    """Zeroes elements with probability `rate` while training; the identity everywhere else."""

    rate: float


@dataclass(frozen=True)
class Sub:
    """A child layer working on vectors of `width`."""

    layer: Layer
    width: int


Leaf = Linear | Stacked | Vector | Table
Declaration = Leaf | Const | Dropout | Sub | tuple[Sub, ...]


@dataclass(frozen=True)
class SharedKV:
    """Keys and values that a layer leaves to later ones of its stack as `name`: `kv_heads` heads of `head_dim` channels."""

    name: str
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Fold:
    """A place where channels can be rescaled without changing what a layer computes: `source` (a norm, or a linear map) gives its
    outputs divided by s > 0, and the linear maps `consumers` take their inputs multiplied by s.

    Names are paths below the layer. Where each head's channels of the source are used by `repeat` heads of the consumer, s
    repeats so, in blocks of `block` channels.
    """

    source: str
    consumers: tuple[str, ...]
    repeat: int = 1
    block: int = 0
