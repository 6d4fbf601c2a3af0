"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): codes chosen column by column, each error compensated by the remaining columns.

Scales are chosen first, by a search weighted by each input's magnitude on the calibration text, and stay fixed; then columns are
quantized in descending order of that magnitude. Blocks are quantized in order, each on the outputs of its quantized predecessors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.quantization import job
from edgeformer.quantization.calibration import Calibration
from edgeformer.weights.formats import GROUP, Format, pack, quantize
from edgeformer.weights.scales import by_channel, searched

if TYPE_CHECKING:
    import torch

_COLUMNS = 128
"""Columns processed before the rest of the matrix is updated."""
_ROWS = 8192
"""Rows processed at once; they don't depend on each other."""


class Method(job.Method):
    """Needs text."""

    calibrated = True

    def run(self, job):
        calibration, weights, formats, done = None, job.loaded.require_weights(), job.formats, job.partial.done
        blocks = [name for name in formats if name.startswith("layers.")]
        if any(name not in done for name in formats):
            calibration = Calibration(job.loaded, job.text())
            for path, block in calibration.blocks():
                mine = [n for n in blocks if n.startswith(path + ".")]
                job.report(f"block {path.split('.')[1]}")
                missing = [n for n in mine if n not in done]
                below = {n: n.removeprefix(path + ".").removesuffix(".weight") for n in missing}
                moments = calibration.second_moments(block, list(below.values())) if missing else {}
                for name in mine:
                    if name in done:
                        found = job.read(name)
                    else:
                        found = _of_block(calibration, name, moments.pop(below[name], None), formats[name])
                        yield {name: found}
                    calibration.set(name, *found, formats[name])
                moments.clear()  # before the next block's
        for name in formats:
            if name in blocks or name in done:
                continue
            assert calibration is not None
            yield {name: _outside(job, name, weights[name], formats[name], calibration)}


def _outside(
    running: job.Job, name: str, weight: np.ndarray, format: Format, calibration: Calibration
) -> job.Quantized:
    """Quantize a weight outside the blocks: an untied head by GPTQ; a tied embedding by a search weighted by the head's inputs
    (its rows are also used directly, as embeddings); others by a plain search."""
    spec = running.loaded.spec
    if name == "head.weight":
        return _quantized(weight, calibration.head_second_moments(), format, name)
    if name == "embed.weight" and spec.head_is_embedding:
        importance = calibration.head_second_moments().diagonal().numpy()
        return quantize(weight, format, by_channel(importance), name=name)
    return quantize(weight, format, searched, name=name)


def _of_block(calibration: Calibration, name: str, moments: torch.Tensor | None, format: Format) -> job.Quantized:
    """A weight of the current block; nothing here outlives the call, so that the next block finds the memory free."""
    return _quantized(calibration.weight(name), moments, format, name)


def _quantized(weight: np.ndarray, moments: torch.Tensor | None, format: Format, name: str) -> job.Quantized:
    if moments is not None and moments.ndim == 3:  # a stack of maps
        made = [_quantized(w, h, format, name) for w, h in zip(weight, moments, strict=True)]
        return np.stack([codes for codes, _ in made]), np.stack([scales for _, scales in made])
    if moments is None or not moments.diagonal().any():  # the calibration text never reached this map
        return quantize(weight, format, searched, name=name)
    return gptq(weight, moments, format, name)


def gptq(weight: np.ndarray, moments: torch.Tensor, format: Format, name: str, damping: float = 0.01) -> job.Quantized:
    """GPTQ codes and scales of a weight [outputs, inputs], given the second moments [inputs, inputs] of its inputs."""
    import torch

    diagonal = moments.diagonal().clone()
    scales = quantize(weight, format, by_channel(diagonal.numpy()), name=name)[1]
    h = moments.double()
    unused = h.diagonal() == 0
    h[unused, unused] = 1.0
    order = torch.argsort(diagonal, descending=True)
    h = h[order][:, order]
    h.diagonal().add_(damping * h.diagonal().mean())
    try:
        upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    except RuntimeError as e:  # torch.linalg.LinAlgError
        raise CheckpointError(
            f"GPTQ can't quantize {name}: the inputs that the calibration text gives it are not finite, or too large"
        ) from e
    codes = np.empty(format.packed_shape(weight.shape), np.uint8)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        found = _codes(np.array(weight[rows], np.float32), scales[rows].astype(np.float32), upper, order, format)
        codes[rows] = pack(found, format)
    return codes, scales


def _codes(
    weight: np.ndarray, scales: np.ndarray, upper: torch.Tensor, order: torch.Tensor, format: Format
) -> np.ndarray:
    """Codes uint8 of rows float32 [n, inputs]. upper: the Cholesky factor of the inverse Hessian, with inputs in this order."""
    import torch

    w = torch.from_numpy(weight)[:, order]
    step = torch.from_numpy(scales)[:, order // GROUP]
    codes = torch.empty_like(w)
    inverse = torch.where(step == 0, 0.0, 1 / step)
    for start in range(0, w.shape[1], _COLUMNS):
        end = min(start + _COLUMNS, w.shape[1])
        errors = torch.empty(w.shape[0], end - start)
        for i in range(start, end):
            column = w[:, i]
            q = torch.clamp(torch.round(column * inverse[:, i]) + format.zero, format.low, format.high)
            codes[:, i] = q
            error = (column - (q - format.zero) * step[:, i]) / upper[i, i]
            w[:, i:end] -= error[:, None] * upper[i, i:end][None]
            errors[:, i - start] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored.numpy().astype(np.uint8)
