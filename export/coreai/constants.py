"""A model's weights as constants of a Core AI graph: float, or codes in blocks of 32 with their scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from edgeformer.exporters.coreai.package import bindings, c, ir
from edgeformer.exporters.coreai.values import CoreTensor, axes, tensor
from edgeformer.exporters.onnx.storage import StoragePlan
from edgeformer.weights.formats import GROUP, SCALES, Format, QuantizedTensor, flip_sign
from edgeformer.weights.mlir_file import blob_name


class Constants:
    """One constant per weight, however often it is used; read when it is first used.

    Args:
        plan: the weights, and how each is stored.
        dtype: of the arithmetic: np.float32 or np.float16.
    """

    def __init__(self, plan: StoragePlan, dtype: type):
        self.plan, self.dtype = plan, dtype
        self._made: dict[str, CoreTensor] = {}

    def weight(self, name: str) -> CoreTensor:
        """A weight as it is stored, in the dtype of the arithmetic."""
        if name not in self._made:
            stored = self.plan.weights.sources[name].stored
            if isinstance(stored, QuantizedTensor):
                self._made[name] = blockwise(name, *stored.quantized(), stored.format, self.dtype)
            else:
                held = self.plan.storage[name]
                assert isinstance(held, onnx_ir.DataType)  # formats are of quantized weights
                value = blob(name, np.asarray(self.plan.weights[name]).astype(held.numpy(), copy=False))
                self._made[name] = tensor(value if held.numpy() == self.dtype else c().cast(value, self.dtype))
        return self._made[name]

    def transposed(self, name: str) -> CoreTensor:
        """A matrix [outputs, inputs] as the right operand of a product; stacks [count, outputs, inputs], too."""
        held = self.weight(name)
        order = (*range(held.ndim - 2), held.ndim - 1, held.ndim - 2)
        return tensor(c().transpose(held.value, axes(*order)))


_KINDS = {"float32": ("F32Type", "F32"), "float16": ("F16Type", "F16"), "bfloat16": ("BF16Type", "BF16")}
"""numpy's dtype -> the dialect's element type, and safetensors' name."""


def blob(name: str, array: np.ndarray) -> Any:
    """A constant of floats, whose bytes the graph refers to under a name, without a copy."""
    element, dtype = _KINDS[array.dtype.name]
    return _named(blob_name(name, dtype, array.shape), array, array.shape, getattr(ir(), element).get())


def _named(label: str, array: np.ndarray, shape: tuple[int, ...], element: Any) -> Any:
    kind = ir().RankedTensorType.get(list(shape), element)
    held = ir().DenseResourceElementsAttr.get_from_buffer(np.ascontiguousarray(array), label, kind, alignment=64)
    return c().ConstantOp(value=held).result


def blockwise(name: str, packed: np.ndarray, scales: np.ndarray, format: Format, dtype: type) -> CoreTensor:
    """scale · (code − zero), with the codes of q4 and q8 as they are but for their sign.

    packed: uint8 [outputs, inputs · bits / 8]; scales: fp16 [outputs, inputs / 32].

    * Codes below a byte are given as packed bytes, the first code in the low bits: `constant()` of an ml_dtypes array writes a
      byte per code and is then read as packed.
    * Codes are signed and the zero is 0: with an unsigned zero of 128, runtimes round before they subtract.
    * Scales and result are of one type: mixed types crash or read wild memory in the Linux runtime. In float32 arithmetic the
      file therefore holds float32 scales, 2 bytes more per 32 weights.
    """
    packed, scales = packed.reshape(len(packed), -1), scales.reshape(len(scales), -1)
    signed = ir().IntegerType.get_signed(format.bits)
    shape = scales.shape[0], scales.shape[1] * GROUP
    codes = _named(blob_name(name, format.name.upper(), shape), flip_sign(packed, format), shape, signed)
    factors = blob(name + SCALES, scales.astype(dtype))
    zeros = np.zeros(scales.size * format.bits // 8, np.uint8)
    wanted = ir().RankedTensorType.get(list(scales.shape), signed)
    offset = c().ConstantOp(value=bindings().create_elements_attr(ir().Location.unknown(), wanted, zeros)).result
    return tensor(c().blockwise_shift_scale(codes, factors, offset, c().constant(np.zeros(scales.shape, dtype))))
