"""Rotary position embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from edgeformer.files.limits import MAX_CONSTANT
from edgeformer.ops import Ops, Rotary
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Const, Declaration, Layer, Node, Position, Sizes, layers

_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Node):
    """RoPE scaling: extends a model beyond its training length, as named by `rope_parameters` in Hugging Face configs.

    Inverse frequencies are numpy constants made at build time, so no runtime computes a power or a logarithm.
    """

    per_length: ClassVar[bool] = False
    """Whether the frequencies depend on the sequence length."""

    def frequencies(self, dim: int, theta: float) -> np.ndarray:
        """Inverse frequencies, float32: `[dim/2]`, or `[n, dim/2]` when `per_length`."""
        raise NotImplementedError

    def row(self, ops: Ops, length: Tensor) -> Tensor:
        """Row index into an `[n, dim/2]` table for a sequence of `length` tokens (a tensor of shape [1])."""
        raise NotImplementedError

    @property
    def restarts_at(self) -> int | None:
        """The length beyond which cached keys must be recomputed; None if they keep the angles they were stored with."""
        return None

    def magnitude(self) -> float:
        """Factor on cos and sin (attention temperature of YaRN and LongRoPE)."""
        return 1.0


def base_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta ** (-2i / dim), i = 0 .. dim/2 - 1, float32.

    Same rounding as the training code (float32 exponent, float32 power, float32 reciprocal): a last-bit error of a frequency
    grows with the position.
    """
    exponents = (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)).astype(np.float64)
    return np.float32(1) / (theta**exponents).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Rope(Position):
    """Rotates pairs (i, i + dim/2) of the first `dim` channels of each head by position · theta ** (-2i/dim).

    Su et al. 2021, arXiv 2104.09864; half-split pairs as in GPT-NeoX, the layout of Hugging Face checkpoints.
    """

    kind: ClassVar[str] = "rope"
    resizes: ClassVar[frozenset[str]] = frozenset(("rope_theta",))
    interleaved: ClassVar[bool] = False
    """Whether pairs are (2i, 2i + 1) instead of (i, i + dim/2)."""

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        self.require(self.dim > 0 and self.dim % 2 == 0, f"dim must be even and positive, got {self.dim}")
        self.require(self.theta > 0, f"theta must be positive, got {self.theta}")

    def resized(self, sizes: Sizes, width: int) -> Self:
        return self if sizes.rope_theta is None else replace(self, theta=sizes.rope_theta)

    def require_heads(self, owner: Node, heads: int, head_dim: int) -> None:
        owner.require(self.dim <= head_dim, f"position rotates {self.dim} channels, but head_dim is only {head_dim}")

    def for_heads(self, heads: int, head_dim: int, old_head_dim: int) -> Self:
        """The scheme for another head_dim, rotating the same share of each head."""
        if head_dim == old_head_dim:
            return self
        return replace(self, dim=max(round(self.dim / old_head_dim * head_dim / 2) * 2, 2))

    def frequencies(self) -> np.ndarray:
        """Inverse frequencies, float32, `[dim/2]` or `[n, dim/2]` (see `RopeScaling`)."""
        if self.scaling is None:
            return base_frequencies(self.dim, self.theta)
        return self.scaling.frequencies(self.dim, self.theta).astype(np.float32)

    @property
    def per_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.scaling is not None and self.scaling.per_length

    def magnitude(self) -> float:
        """Factor on cos and sin."""
        return 1.0 if self.scaling is None else self.scaling.magnitude()

    def table(self, length: int) -> tuple[np.ndarray, np.ndarray] | None:
        """cos and sin tables, float32 `[length, dim/2]`, for kernels that look up positions.

        None if the angles depend on the sequence length. Angles are rounded to float32 before taking the cosine, as in every
        runtime that computes them.
        """
        if self.per_length:
            return None
        frequencies = self.frequencies()
        self.require(
            length * len(frequencies) <= MAX_CONSTANT,
            f"a RoPE table of {length:,} positions × {len(frequencies):,} angles is too large; export with a smaller --context N",
        )
        cos, sin = (np.empty((length, len(frequencies)), np.float32) for _ in range(2))
        for start in range(0, length, _ROWS):  # in pieces, to bound the float64 temporaries
            rows = slice(start, min(start + _ROWS, length))
            positions = np.arange(rows.start, rows.stop).astype(np.float32)
            angles = (positions[:, None] * frequencies).astype(np.float64)
            cos[rows], sin[rows] = np.cos(angles) * self.magnitude(), np.sin(angles) * self.magnitude()
        return cos, sin

    def params(self, width: int) -> dict[str, Declaration]:
        return {"frequencies": Const(self.frequencies)}

    def apply(self, ops: Ops, p: LayerHandle, step: Step) -> Rotary:
        frequencies = p.frequencies
        if self.scaling is not None and self.scaling.per_length:
            frequencies = ops.take(frequencies, self.scaling.row(ops, ops.largest(step.positions) + 1))
        return ops.rotary(self, step, frequencies)


def length_dependent(model: Layer) -> bool:
    """Whether a model's RoPE angles depend on the sequence length: cached keys then keep their own step's rotation, and chunked
    prefill differs from a single pass."""
    schemes = [layer for _, layer, _ in layers(model) if isinstance(layer, Rope)]
    return any(rope.per_length for rope in schemes)


def cache_restart(model: Layer) -> int | None:
    """The sequence length beyond which all keys need other RoPE angles, so that the KV cache must be recomputed; None if there
    is no such length."""
    schemes = [layer for _, layer, _ in layers(model) if isinstance(layer, Rope)]
    lengths = {rope.scaling.restarts_at for rope in schemes if rope.scaling is not None}
    return min((length for length in lengths if length is not None), default=None)
