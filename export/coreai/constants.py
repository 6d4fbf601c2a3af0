"""A model's weights as constants of a Core AI graph: float, or codes in blocks of 32 with their scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir

from edgeformer.exporters.coreai.package import bindings, c, ir
from edgeformer.exporters.coreai.values import CoreTensor, axes, tensor
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.exporters.onnx.storage import StoragePlan
from edgeformer.weights.formats import GROUP, SCALES, QuantizedTensor, flip_sign
from edgeformer.weights.mlir_file import blob_name


class Constants:
    """One blob per weight, and one constant per function that uses it, however often; read when it is first used.

    Args:
        plan: the weights, and how each is stored.
        dtype: of the arithmetic: np.float32 or np.float16.
        progress: called with (bytes read, total bytes).
    """

    def __init__(self, plan: StoragePlan, dtype: type, progress: Progress | None = None):
        self.plan, self.dtype, self._progress = plan, dtype, progress
        self._total = sum(self._size(name) for name in plan.weights.sources) if progress else 0
        self._made: dict[str, CoreTensor] = {}
        self._blobs: dict[str, Any] = {}
        self.bytes = 0
        """Bytes of all blobs so far."""

    def _size(self, name: str) -> int:
        """Bytes of a weight's blobs."""
        held, shape = self.plan.storage[name], self.plan.weights.sources[name].shape
        if isinstance(held, onnx_ir.DataType):
            return math.prod(shape) * held.numpy().itemsize
        return math.prod(held.packed_shape(shape)) + math.prod(held.scales_shape(shape)) * np.dtype(self.dtype).itemsize

    def another_function(self) -> None:
        """Constants made from now on belong to another function."""
        self._made = {}

    def weight(self, name: str) -> CoreTensor:
        """A weight as it is stored, in the dtype of the arithmetic."""
        if name not in self._made:
            stored = self.plan.weights.sources[name].stored
            if isinstance(stored, QuantizedTensor):
                self._made[name] = self._blockwise(name, stored)
            else:
                held = self.plan.storage[name]
                assert isinstance(held, onnx_ir.DataType)  # formats are of quantized weights
                value = self._floats(name, lambda: np.asarray(self.plan.weights[name]).astype(held.numpy(), copy=False))
                self._made[name] = tensor(value if held.numpy() == self.dtype else c().cast(value, self.dtype))
        return self._made[name]

    def transposed(self, name: str) -> CoreTensor:
        """A matrix [outputs, inputs] as the right operand of a product; stacks [count, outputs, inputs], too."""
        held = self.weight(name)
        order = (*range(held.ndim - 2), held.ndim - 1, held.ndim - 2)
        return tensor(c().transpose(held.value, axes(*order)))

    def _floats(self, name: str, read: Callable[[], np.ndarray], shape: tuple[int, ...] | None = None) -> Any:
        """A constant of floats. shape: the tensor's, where the constant has another one."""
        if name not in self._blobs:
            array = read()
            element, dtype = _KINDS[array.dtype.name]
            self._blobs[name] = self._blob(
                blob_name(name, dtype, shape or array.shape), array, array.shape, getattr(ir(), element).get()
            )
        return c().ConstantOp(value=self._blobs[name]).result

    def _blockwise(self, name: str, stored: QuantizedTensor) -> CoreTensor:
        """scale · (code − zero), with the codes of q4 and q8 as they are but for their sign.

        * Codes below a byte are given as packed bytes, the first code in the low bits: `constant()` of an ml_dtypes array writes
          a byte per code and is then read as packed.
        * Codes are signed and the zero is 0: with an unsigned zero of 128, runtimes round before they subtract.
        * Scales and result are of one type: mixed types crash or read wild memory in the Linux runtime. In float32 arithmetic
          the file therefore holds float32 scales, 2 bytes more per 32 weights.
        """
        format = stored.format
        *stack, outputs, groups = format.scales_shape(stored.shape)
        outputs *= math.prod(stack)  # maps of a stack, one below the other
        signed = ir().IntegerType.get_signed(format.bits)
        if name not in self._blobs:
            codes, scales = stored.quantized()
            label = blob_name(name, format.name.upper(), stored.shape)
            self._blobs[name] = self._blob(label, flip_sign(codes, format), (outputs, groups * GROUP), signed)
            factors = scales.reshape(outputs, groups).astype(self.dtype)
            self._floats(name + SCALES, lambda: factors, scales.shape)
        factors = self._floats(name + SCALES, lambda: np.empty(0))
        zeros = np.zeros(outputs * groups * format.bits // 8, np.uint8)
        wanted = ir().RankedTensorType.get([outputs, groups], signed)
        offset = c().ConstantOp(value=bindings().create_elements_attr(ir().Location.unknown(), wanted, zeros)).result
        data = c().ConstantOp(value=self._blobs[name]).result
        nothing = c().constant(np.zeros((outputs, groups), self.dtype))
        value = c().blockwise_shift_scale(data, factors, offset, nothing)
        return tensor(c().reshape(value, axes(*stored.shape)) if stack else value)

    def _blob(self, label: str, array: np.ndarray, shape: tuple[int, ...], element: Any) -> Any:
        """Bytes that the graph refers to under a name, without a copy."""
        self.bytes += array.nbytes
        if self._progress:
            self._progress(self.bytes, self._total)
        kind = ir().RankedTensorType.get(list(shape), element)
        return ir().DenseResourceElementsAttr.get_from_buffer(np.ascontiguousarray(array), label, kind, alignment=64)


_KINDS = {"float32": ("F32Type", "F32"), "float16": ("F16Type", "F16"), "bfloat16": ("BF16Type", "BF16")}
"""numpy's dtype -> the dialect's element type, and safetensors' name."""
