"""Base of all Metal kernels: source, launch, gradient, and test cases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

FLOATS = (mx.float32, mx.float16, mx.bfloat16)
EPSILON = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
"""Machine epsilon: the distance from 1 to the next larger number."""


@dataclass(frozen=True)
class Case:
    """One call of a kernel, and its expected outputs.

    call: a function of the kernel; body: the same in MLX's ops; expected: float64 arrays; limit: largest |difference| allowed
    in float32, in units of the dtype's epsilon times the largest |expected|. Half precisions, which compute in float32 and
    round at the end, are allowed one unit. `defined`: whether the body must also match the expected values; if all keys are
    masked, it may return any finite number.
    """

    name: str
    call: Callable[[Any], Sequence[mx.array]]
    body: Callable[[], Sequence[mx.array]]
    expected: Sequence[np.ndarray]
    limit: float
    defined: bool = True

    def error(self, outputs: Sequence[mx.array]) -> float:
        """The largest |difference| as a multiple of the allowed one; infinite for a wrong shape or non-finite outputs."""
        worst = 0.0
        for found, expected in zip(outputs, self.expected, strict=True):
            if found.shape != expected.shape or not bool(mx.isfinite(found.astype(mx.float32)).all()):
                return float("inf")
            unit = EPSILON[found.dtype] * max(float(np.abs(expected).max()), 1e-30)
            allowed = self.limit if found.dtype == mx.float32 else 1.0
            worst = max(worst, float(np.abs(exact(found) - expected).max()) / unit / allowed)
        return worst


class Kernel(ABC):
    """A Metal kernel: subclasses define its names, when it applies (`takes`), how it is called, and its test cases."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    row_contiguous: ClassVar[bool] = True
    """Whether MLX copies strided inputs first; False for kernels that read strides."""

    def __init__(self, launch: Callable[..., Any] | None = None):
        self.launch = launch or self._launch

    @classmethod
    def source(cls) -> str:
        """The kernel's body, as `mx.fast.metal_kernel` takes it."""
        return Path(__file__).with_name(f"{cls.name}.metal").read_text()

    def _launch(self, **call: object) -> list[mx.array]:
        return built(type(self))(**call)

    @abstractmethod
    def takes(self, *arguments: object) -> bool:
        """Whether the kernel supports these arguments; otherwise the op-level body runs."""

    @abstractmethod
    def cases(self, dtype: mx.Dtype) -> Iterator[Case]:
        """Test cases: at least five shapes, including ragged ones."""


@cache
def built(kind: type[Kernel], source: str | None = None) -> Any:
    """The kernel as an MLX object, compiled on its first launch. `source` overrides the kernel's own."""
    return mx.fast.metal_kernel(
        name=kind.name,
        input_names=list(kind.inputs),
        output_names=list(kind.outputs),
        source=source or kind.source(),
        ensure_row_contiguous=kind.row_contiguous,
    )


def differentiable(forward: Callable[..., Any], body: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, a function of arrays only, with the gradient of `body`, its equivalent in MLX's ops."""
    function = mx.custom_function(forward)

    @function.vjp
    def gradient(
        primals: Sequence[mx.array], cotangents: mx.array | list[mx.array] | tuple[mx.array, ...], outputs: object
    ) -> list[mx.array]:
        single = not isinstance(cotangents, (list, tuple))
        return mx.vjp(body, list(primals), [cotangents] if single else list(cotangents))[1]

    return function


def random(seed: int, dtype: mx.Dtype, *shape: int, scale: float = 1.0) -> mx.array:
    """Normally distributed numbers in a dtype."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape) * scale, mx.float32).astype(dtype)


def exact(x: mx.array) -> np.ndarray:
    """An array's values in float64."""
    return np.array(x.astype(mx.float32)).astype(np.float64)
