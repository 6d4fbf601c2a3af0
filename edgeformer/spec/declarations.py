"""Declarations of layers: parameters, children, rescalable channels, shared keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeformer.errors import SpecError

if TYPE_CHECKING:
    from edgeformer.spec.nodes import Layer


@dataclass(frozen=True)
class Linear:
    """`y = x @ weight.T + bias`. Tensors: weight `[outputs, inputs]`, bias `[outputs]`.

    `residual` marks a projection that writes into the residual stream: GPT-2's initialisation scales it by depth. `routes` marks
    a router of experts: quantization leaves it as it is, since a small error chooses other experts."""

    inputs: int
    outputs: int
    bias: bool = False
    residual: bool = False
    routes: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        weight = {"weight": (self.outputs, self.inputs)}
        return weight | {"bias": (self.outputs,)} if self.bias else weight


@dataclass(frozen=True)
class Stacked:
    """`count` bias-free linear maps stored in one tensor `[count, outputs, inputs]` (experts; per-head maps of MLA).

    `active`: how many of them are applied per token (the chosen experts); None for all.
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
    """An embedding table `[rows, width]`. Its handle maps ids to rows; `as_linear` is the tied head."""

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
    """Zeroes elements with probability `rate` during training; the identity otherwise."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise SpecError(f"a dropout is a probability from 0 to 1, got {self.rate:g}")


@dataclass(frozen=True)
class Sub:
    """A child layer with inputs of `width`."""

    layer: Layer
    width: int


Leaf = Linear | Stacked | Vector | Table
Declaration = Leaf | Const | Dropout | Sub | tuple[Sub, ...]


@dataclass(frozen=True)
class SharedKV:
    """K/V that a layer publishes to later layers of its stack under `name`: `kv_heads` heads of `head_dim` channels."""

    name: str
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Fold:
    """A place where channels can be rescaled without changing a layer's output: outputs of `source` (a norm or a linear map) are
    divided by s > 0, and inputs of the linear maps `consumers` multiplied by s.

    Names are paths below the layer. If `repeat` heads of the consumer use each head's channels of the source, s is repeated
    accordingly, in blocks of `block` channels.
    """

    source: str
    consumers: tuple[str, ...]
    repeat: int = 1
    block: int = 0
