"""Mix q4 and q8 within a budget of bits per weight: the units most sensitive to q4 get q8.

A unit is a group of weights that share an input (q, k and v; gate and up), which runtimes pack into one, or a single weight.
Each unit's harm is measured: the KL divergence of the model's predictions on text, with only that unit in q4, from the float32
model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError
from edgeformer.quantization.calibration import require_torch
from edgeformer.spec import layers
from edgeformer.spec.task import Task
from edgeformer.weights.formats import QUANTIZED, Format, dequantize, quantize
from edgeformer.weights.rounding import chosen
from edgeformer.weights.scales import searched

if TYPE_CHECKING:
    import torch

_TOKENS = 2048
"""Tokens of text to measure on. Few are enough: KL divergences of units differ by factors, not by per cent."""
_LOGITS_BYTES = 512 << 20
"""Largest size of the reference's logits; for large vocabularies it limits the tokens further."""


@dataclass(frozen=True)
class Unit:
    """Tensors that share one format. `harm`: mean KL divergence in nats per token when only they are q4."""

    names: tuple[str, ...]
    weights: int
    harm: float
    format: str


def units(loaded: LoadedModel, keep: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The names of `chosen`, grouped by shared input."""
    names = chosen(loaded.spec, keep)
    together: dict[str, tuple[str, ...]] = {}
    for path, layer, _ in layers(loaded.spec):
        for group in layer.same_input:
            members = tuple(f"{path}.{name}.weight" for name in group)
            together |= {m: tuple(n for n in members if n in names) for m in members}
    return list(dict.fromkeys(together.get(name, (name,)) for name in names))


def mixed(
    loaded: LoadedModel,
    ids: np.ndarray,
    budget: float,
    *,
    keep: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Format], list[Unit]]:
    """Canonical name -> format, and every unit with its harm, in descending order of harm per weight.

    Args:
        loaded: the model.
        ids: text, int64 [n, T].
        budget: bits per quantized weight, scales included: 4.5 is all q4, 8.5 all q8.
        keep: name patterns of tensors to leave unquantized.
        progress: called with (units done, total units).

    Raises:
        InputError: the budget is outside 4.5 .. 8.5, or the model is not a decoder.
    """
    q4, q8 = QUANTIZED["q4"], QUANTIZED["q8"]
    if not q4.bits_per_weight <= budget <= q8.bits_per_weight:
        raise InputError(
            f"a budget of {budget} bits per weight is outside {q4.bits_per_weight} (q4) .. {q8.bits_per_weight} (q8)"
        )
    if loaded.spec.task != Task.TEXT_GENERATION:
        raise InputError(
            "sensitivity is measured on a decoder's next-token predictions, and this model is not a decoder;"
            " use --format q4 or q8"
        )
    weights, groups = loaded.require_weights(), units(loaded, keep)
    tokens = min(_TOKENS, max(_LOGITS_BYTES // (4 * loaded.spec.vocab), 64))
    window = min(ids.shape[1], tokens)
    sample = ids[: max(tokens // window, 1), :window]
    torch = require_torch()
    from edgeformer.runtimes.torch import build_torch

    model = build_torch(loaded)

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.from_numpy(sample))

    reference = logits()
    harms = []
    for done, names in enumerate(groups):
        for name in names:
            _set(model, name, dequantize(*quantize(weights[name], q4, searched, name=name), q4))
        harms.append(_divergence(reference, logits()))
        for name in names:
            _set(model, name, np.asarray(weights[name]).astype(np.float32))
        if progress is not None:
            progress(done + 1, len(groups))
    sizes = [sum(math.prod(weights.sources[name].shape) for name in names) for names in groups]
    order = sorted(range(len(groups)), key=lambda i: -harms[i] / sizes[i])
    spare = (budget - q4.bits_per_weight) * sum(sizes)
    formats: dict[str, Format] = {}
    made = []
    for i in order:
        cost = sizes[i] * (q8.bits_per_weight - q4.bits_per_weight)
        format = q8 if cost <= spare else q4
        spare -= cost if format is q8 else 0
        formats |= dict.fromkeys(groups[i], format)
        made.append(Unit(groups[i], sizes[i], harms[i], format.name))
    return {name: formats[name] for names in groups for name in names}, made


def _set(model: Any, name: str, value: np.ndarray) -> None:
    """Replace a tensor of a torch model, by its canonical name."""
    import torch

    path, _, leaf = name.rpartition(".")
    with torch.no_grad():
        getattr(model.get_submodule(path), leaf).copy_(torch.from_numpy(np.ascontiguousarray(value)))


def _divergence(reference: torch.Tensor, ours: torch.Tensor) -> float:
    """Mean KL(reference ‖ ours) of logits [n, T, V] in nats, computed 64 positions at a time."""
    import torch

    rows = [x.reshape(-1, x.shape[-1]) for x in (reference, ours)]
    total = 0.0
    for start in range(0, len(rows[0]), 64):
        p, q = (torch.log_softmax(x[start : start + 64].double(), -1) for x in rows)
        total += float((p.exp() * (p - q)).sum())
    return total / len(rows[0])
