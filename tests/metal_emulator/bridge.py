"""Gets a kernel's text and launch from MLX, and stands in for launching it.

MLX generates a custom kernel's whole function when it traces a call: `mx.export_function` with a callback hands it over
without a GPU. The callback's format is undocumented; `captured` is where it is read, and tests pin it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from metal_emulator.program import Program

INCLUDE = str(Path(mx.__file__).parent / "include")
UTILS = "mlx/backend/metal/kernels/utils.h"


@dataclass(frozen=True)
class Launch:
    """What MLX would send to the GPU. shape_infos: per input, whether shape, strides and number of axes are passed too."""

    name: str
    source: str
    grid: tuple[int, ...]
    threadgroup: tuple[int, ...]
    shape_infos: Any
    row_contiguous: bool

    @property
    def template(self) -> str:
        """The template arguments of the instantiation."""
        found = re.search(rf"decltype\({re.escape(self.name)}<(.*)>\)", self.source)
        return found[1] if found else ""


def captured(kernel: Any, inputs: list[Any], **call: Any) -> Launch:
    """The launch that calling MLX's kernel object means."""
    found: list[Any] = []

    def look(event: dict[str, Any]) -> None:
        if event["type"] == "primitive" and event["name"] == "CustomKernel":
            found.append(event["arguments"])

    arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
    mx.export_function(look, lambda *a: kernel(inputs=list(a), **call), *arrays)
    name, source, gx, gy, gz, tx, ty, tz, infos, contiguous = found[0][:10]
    return Launch(name, source, (gx, gy, gz), (tx, ty, tz), infos, contiguous)


@functools.cache
def _program(source: str, name: str, template: str) -> Program:
    return Program(source, name, template, {}, [UTILS], INCLUDE)


class Emulator:
    """Launches a kernel in the emulator: `kernel.launch = Emulator(mlx_kernel, order)`."""

    def __init__(self, kernel: Any, order: int = 0):
        self.kernel, self.order = kernel, order
        self.statistics: dict[str, int] = {}

    def __call__(self, *, inputs: list[Any], output_shapes: list, output_dtypes: list, **call: Any) -> list[mx.array]:
        """As MLX's own call."""
        launch = captured(self.kernel, inputs, output_shapes=output_shapes, output_dtypes=output_dtypes, **call)
        buffers: list[np.ndarray] = []
        for x, (shape, strides, ndim) in zip(inputs, launch.shape_infos, strict=True):
            x = x if isinstance(x, mx.array) else mx.array(x)
            numbers, steps = to_numpy(x), None
            if not launch.row_contiguous and x.ndim == 4:
                numbers, steps = _apart(numbers)
            buffers.append(numbers)
            if x.ndim:
                logical = to_numpy(x)
                buffers += [np.array(x.shape, np.int32)] if shape else []
                dense = np.array([s // logical.itemsize for s in logical.strides], np.int64)
                buffers += [dense if steps is None else steps] if strides else []
                buffers += [np.array([x.ndim], np.int32)] if ndim else []
        first = len(buffers)
        for shape, dtype in zip(output_shapes, output_dtypes, strict=True):
            empty = np.empty(shape, to_numpy(mx.zeros(1, dtype)).dtype)
            empty.view(np.uint8).fill(0xFF)  # NaN: an element that nobody writes shows
            buffers.append(empty)
        program = _program(launch.source, launch.name, launch.template)
        outputs = program.run(buffers, list(range(first, len(buffers))), launch.grid, launch.threadgroup, self.order)
        self.statistics = program.statistics
        return [from_numpy(o, dtype) for o, dtype in zip(outputs, output_dtypes, strict=True)]


def _apart(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same elements with NaN between heads and between rows, as in a larger cache; and the strides."""
    a, b, c, d = x.shape
    wide = np.empty((a, b, c + 2, d), x.dtype)
    wide.view(np.uint8).fill(0xFF)
    wide[:, :, :c] = x
    return wide, np.array([s // wide.itemsize for s in wide.strides], np.int64)


def to_numpy(x: mx.array) -> np.ndarray:
    """An array's bits; bfloat16 as uint16."""
    return np.array(x.view(mx.uint16)) if x.dtype == mx.bfloat16 else np.array(x)


def from_numpy(x: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """The array with these bits."""
    return mx.array(x).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(x)
