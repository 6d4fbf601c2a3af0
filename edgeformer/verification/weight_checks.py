"""Checks that a quantized artefact's weights come from the given model, without running it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.verification.verdict import FAIL, PASS, UNCHECKED, Check
from edgeformer.weights.affine import AffineTensor
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import QUANTIZED, QuantizedTensor, dequantize, nearest, quantize
from edgeformer.weights.parts import Cut
from edgeformer.weights.rounding import stored_format
from edgeformer.weights.scales import searched

_ROUNDINGS = {"rtn": nearest, "search": searched}
"""Rounding methods that can be reproduced from the original alone."""


def check_weights(quantized: LoadedModel, original: LoadedModel) -> Check:
    """Check that a quantized model's weights come from the original.

    For a quantized original: codes and scales must be identical. For an unquantized one: they must be exactly what the method
    produces, if it needs no other input; MLX's affine mode is checked to within a step. Calibrated methods change weights
    beyond rounding, so they are unchecked.
    """
    if stored_format(original.require_weights()) in (*QUANTIZED, "mixed") or _kept_affine(quantized, original):
        return _check_same_bits(quantized, original)
    affine = any(isinstance(s.stored, AffineTensor) for s in quantized.require_weights().sources.values())
    if affine and quantized.quantization is None:
        return check_affine(quantized, original)
    method = (quantized.quantization or {}).get("method", "rtn")
    if method not in _ROUNDINGS:
        note = f"{method} changes weights beyond rounding: verify against the quantized checkpoint, or use `edgeformer quality`"
        return Check("weights", UNCHECKED, note=note)
    return _check_repeated(quantized, original, method)


def _kept_affine(quantized: LoadedModel, original: LoadedModel) -> bool:
    """Whether both are in MLX's affine mode, with the same bit width, group size and scale dtype."""
    kinds = []
    for model in (quantized, original):
        stored = [s.stored for s in model.require_weights().sources.values()]
        kinds.append({(t.dtype, t.scales.dtype) for t in stored if isinstance(t, AffineTensor)})
    return kinds[0] == kinds[1] != set()


def _check_same_bits(quantized: LoadedModel, original: LoadedModel) -> Check:
    theirs = original.require_weights()
    if (other := _unknown(quantized, original)) is not None:
        return other
    for name, source in _shared(quantized, theirs):
        other = theirs.sources[name].stored
        if isinstance(source.stored, QuantizedTensor) and isinstance(other, QuantizedTensor):
            pairs = zip(source.stored.quantized(), other.quantized(), strict=True)
            same = source.stored.format == other.format and all(np.array_equal(a, b) for a, b in pairs)
        else:  # MLX folders and unquantized tensors: equal values after rounding to the stored dtype
            ours = source.read()
            same = np.array_equal(ours.astype(np.float32), theirs[name].astype(_held(source, ours)).astype(np.float32))
        if not same:
            return Check("weights", FAIL, note=f"{name} differs from {original.name}")
    return Check("weights", PASS, max_abs=0.0, limit=0.0, note="the same codes and scales")


def _unknown(quantized: LoadedModel, original: LoadedModel) -> Check | None:
    """A failed check, if there is a tensor that the original hasn't. A head in place of a tied one is compared by outputs."""
    head = {"head.weight"} if original.spec.head_is_embedding else set()
    others = quantized.require_weights().sources.keys() - original.require_weights().sources.keys() - head
    return Check("weights", FAIL, note=f"{min(others)} is not in {original.name}") if others else None


def _shared(quantized: LoadedModel, weights: Weights) -> list[tuple[str, Source]]:
    """The tensors that the original has, too. GGUF has T5's head, a scaled copy of the embedding, as one more: the comparison of
    outputs covers it."""
    return [(name, source) for name, source in quantized.require_weights().sources.items() if name in weights.sources]


def _held(source: Source, array: np.ndarray) -> npt.DTypeLike:
    return np.float32 if isinstance(source.stored, (QuantizedTensor, AffineTensor)) else array.dtype


def _check_repeated(quantized: LoadedModel, original: LoadedModel, method: str) -> Check:
    weights = original.require_weights()
    if (other := _unknown(quantized, original)) is not None:
        return other
    for name, source in _shared(quantized, weights):
        if isinstance(source.stored, AffineTensor):  # an MLX folder: equal values imply equal codes and scales
            format = next(f for f in QUANTIZED.values() if f.bits == source.stored.bits)
            expected = quantize(weights[name], format, _ROUNDINGS[method], name=name)
            if not np.array_equal(source.read(), dequantize(*expected, format)):
                return Check("weights", FAIL, note=f"{name} differs from what {method} makes of the original")
            continue
        if not isinstance(source.stored, QuantizedTensor):
            ours, theirs = source.read(), weights[name]
            if not np.array_equal(ours.astype(np.float32), theirs.astype(ours.dtype).astype(np.float32)):
                return Check("weights", FAIL, note=f"{name} differs from the original")
            continue
        expected = quantize(weights[name], source.stored.format, _ROUNDINGS[method], name=name)
        if not all(np.array_equal(a, b) for a, b in zip(source.stored.quantized(), expected, strict=True)):
            return Check("weights", FAIL, note=f"{name} differs from what {method} makes of the original")
    return Check(
        "weights", PASS, max_abs=0.0, limit=0.0, note=f"codes and scales are what {method} makes of the original"
    )


def check_affine(quantized: LoadedModel, original: LoadedModel) -> Check:
    """Check that weights in MLX's affine mode come from the original.

    Quantized weights must be within one step of their scale (rounding takes half a step, and MLX shifts a group's range so that
    one end is exact), plus the rounding error of scale and bias. Others must be the original's, rounded to their dtype.
    `max_abs` is the largest |difference| as a share of what is allowed.
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
    note = "share of the allowed quantization error" + (f"; {where} differs from the original" if worst > 1 else "")
    return Check("weights", PASS if worst <= 1 else FAIL, max_abs=worst, limit=1.0, note=note)


_NOT_AT_ALL = 1e9


def _allowed(stored: AffineTensor, part: Cut | None, original: np.ndarray) -> np.ndarray:
    """The allowed |difference| of each weight: 1.01 steps, plus (2ᵇ − 1) roundings of the scale and one of the bias.

    The step is the stored scale, capped by what the original's range requires (MLX shifts it by at most half a code), so that a
    wrong scale can't widen its own tolerance.
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
