"""Are a quantized artefact's weights the model's? What can be said without running it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.verification.verdict import FAIL, PASS, UNCHECKED, Check
from edgeformer.weights.affine import AffineTensor
from edgeformer.weights.formats import QUANTIZED, QuantizedTensor, dequantize, nearest, quantize
from edgeformer.weights.rounding import stored_format
from edgeformer.weights.scales import searched

_ROUNDINGS = {"rtn": nearest, "search": searched}
"""Methods that anyone can repeat from the original alone."""


def check_weights(quantized: LoadedModel, original: LoadedModel) -> Check:
    """Whether a quantized model's weights are those it was made from.

    Against a quantized original: the same codes and scales. Against the plain original: exactly what the method makes of it,
    where it needs nothing else; MLX's own affine mode within a step. Calibrated methods move weights on purpose: unchecked.
    """
    if stored_format(original.require_weights()) in (*QUANTIZED, "mixed") or _kept_affine(quantized, original):
        return _check_same_bits(quantized, original)
    affine = any(isinstance(s.stored, AffineTensor) for s in quantized.require_weights().sources.values())
    if affine and quantized.quantization is None:
        return check_affine(quantized, original)
    method = (quantized.quantization or {}).get("method", "rtn")
    if method not in _ROUNDINGS:
        note = (
            f"{method} moves weights on purpose: verify against the quantized checkpoint, or ask `edgeformer quality`"
        )
        return Check("weights", UNCHECKED, note=note)
    return _check_repeated(quantized, original, method)


def _kept_affine(quantized: LoadedModel, original: LoadedModel) -> bool:
    """Whether both are in MLX's own affine mode, of the same width, groups and type of scales."""
    kinds = []
    for model in (quantized, original):
        stored = [s.stored for s in model.require_weights().sources.values()]
        kinds.append({(t.dtype, t.scales.dtype) for t in stored if isinstance(t, AffineTensor)})
    return kinds[0] == kinds[1] != set()


def _check_same_bits(quantized: LoadedModel, original: LoadedModel) -> Check:
    theirs = original.require_weights()
    for name, source in quantized.require_weights().sources.items():
        other = theirs.sources[name].stored
        if isinstance(source.stored, QuantizedTensor) and isinstance(other, QuantizedTensor):
            pairs = zip(source.stored.quantized(), other.quantized(), strict=True)
            same = source.stored.format == other.format and all(np.array_equal(a, b) for a, b in pairs)
        else:  # MLX's folders, and what isn't quantized: equal numbers, as far as its type holds them
            ours = source.read()
            same = np.array_equal(ours.astype(np.float32), theirs[name].astype(_held(source, ours)).astype(np.float32))
        if not same:
            return Check("weights", FAIL, note=f"{name} has other bits than {original.name}")
    return Check("weights", PASS, max_abs=0.0, limit=0.0, note="the same codes and scales")


def _held(source: Any, array: np.ndarray) -> Any:
    return np.float32 if isinstance(source.stored, (QuantizedTensor, AffineTensor)) else array.dtype


def _check_repeated(quantized: LoadedModel, original: LoadedModel, method: str) -> Check:
    weights = original.require_weights()
    for name, source in quantized.require_weights().sources.items():
        if isinstance(source.stored, AffineTensor):  # an MLX folder: equal numbers are equal codes and scales
            format = next(f for f in QUANTIZED.values() if f.bits == source.stored.bits)
            expected = quantize(weights[name], format, _ROUNDINGS[method], name=name)
            if not np.array_equal(source.read(), dequantize(*expected, format)):
                return Check("weights", FAIL, note=f"{name} is not what {method} makes of the original's")
            continue
        if not isinstance(source.stored, QuantizedTensor):
            ours, theirs = source.read(), weights[name]
            if not np.array_equal(ours.astype(np.float32), theirs.astype(ours.dtype).astype(np.float32)):
                return Check("weights", FAIL, note=f"{name} is not the original's")
            continue
        expected = quantize(weights[name], source.stored.format, _ROUNDINGS[method], name=name)
        if not all(np.array_equal(a, b) for a, b in zip(source.stored.quantized(), expected, strict=True)):
            return Check("weights", FAIL, note=f"{name} is not what {method} makes of the original's")
    return Check(
        "weights", PASS, max_abs=0.0, limit=0.0, note=f"codes and scales are what {method} makes of the original"
    )


def check_affine(quantized: LoadedModel, original: LoadedModel) -> Check:
    """Whether weights in MLX's own affine mode are the original's.

    Those stored as codes: within one step of their scale (rounding is half of one, and MLX moves a group's range so that one end
    is exact), and what rounding scale and bias to their type adds. The others: the original's, rounded to their type. `max_abs`
    is the largest |difference| as a share of that.
    """
    worst, where, weights = 0.0, "", original.require_weights()
    for name, source in quantized.require_weights().sources.items():
        stored, ours, theirs = source.stored, source.read(), weights[name]
        if isinstance(stored, AffineTensor):
            allowed = _allowed(stored, source.part, theirs)
            ratio = np.abs(ours - theirs.astype(np.float32)) / allowed
        else:
            ratio = (ours.astype(np.float32) != theirs.astype(ours.dtype).astype(np.float32)) * np.float32(_NOT_AT_ALL)
        largest = float(np.nan_to_num(ratio, nan=_NOT_AT_ALL, posinf=_NOT_AT_ALL).max(initial=0.0))
        if largest > worst:
            worst, where = largest, name
    note = "share of what quantizing may change" + (f"; {where} is not the original's" if worst > 1 else "")
    return Check("weights", PASS if worst <= 1 else FAIL, max_abs=worst, limit=1.0, note=note)


_NOT_AT_ALL = 1e9


def _allowed(stored: AffineTensor, part: Any, original: np.ndarray) -> np.ndarray:
    """The largest |difference| of each weight: 1.01 steps, (2ᵇ − 1) roundings of the scale, one of the bias.

    The step is the stored scale, but no larger than the original's range calls for (MLX moves it by half a code at most): a
    scale that is wrong must not grant itself room.
    """
    scales, biases = (np.abs(t.read().astype(np.float32)) for t in (stored.scales, stored.biases))
    if part is not None:
        scales, biases = part.take(scales), part.take(biases)
    codes = 2**stored.bits - 1
    grouped = original.astype(np.float32).reshape(*scales.shape, stored.group_size)
    called_for = (grouped.max(-1) - grouped.min(-1)) / codes * (1 + 0.5 / max(codes // 2, 1))
    unit = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}[stored.scales.dtype]
    allowed = np.minimum(scales, called_for * (1 + unit)) * (1.01 + codes * unit) + biases * unit
    return np.maximum(allowed, 1e-12).repeat(stored.group_size, -1)
