"""Find a group's scale: the fp16 number whose rounded codes have the smallest weighted squared error."""

from __future__ import annotations

import numpy as np

from edgeformer.weights.formats import GROUP, Format, Rounding, nearest

_STEPS = {4: np.linspace(0.8, 1.1, 7), 8: np.linspace(0.99, 1.01, 3)}
"""Candidates as multiples of the scale that maps a group's largest element to the last code. Clipping it is often better."""


def searched(groups: np.ndarray, format: Format, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and fp16-exact scales of groups float32 `[n, 32]`.

    Both signs of the scale are tried (codes reach one step further below zero than above), rounding uses the scale *as
    stored*, and the best candidate is refitted by least squares.

    Args:
        groups: the weights.
        format: q4 or q8.
        weights: importance of each element, `[n, 32]` or `[32]`; equal by default.
    """
    best = _Best(groups, weights, format)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)[:, 0]
    for multiple in _STEPS[format.bits]:
        for sign in (-1, 1):
            best.offer(largest * np.float32(sign * multiple / format.zero))
    for _ in range(2):
        best.refit()
    return (best.centred + format.zero).astype(np.uint8), best.scales


def by_channel(importance: np.ndarray) -> Rounding:
    """`searched` with one importance per input, such as the mean square of that input on real text."""
    shared = np.maximum(np.asarray(importance, np.float32), 1e-12).reshape(-1, GROUP)
    shared = shared / shared.mean()

    def rounding(groups: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
        return searched(groups, format, np.tile(shared, (len(groups) // len(shared), 1)))

    return rounding


class _Best:
    """The best codes (less the zero, as floats) and scales so far, by weighted squared error; at first rounded to nearest."""

    def __init__(self, groups: np.ndarray, importance: np.ndarray | None, format: Format):
        self.groups, self.importance, self.format = groups, importance, format
        codes, scales = nearest(groups, format)
        self.centred = codes.astype(np.float32) - format.zero
        self.scales = _stored(scales)
        self._scratch = np.empty_like(groups)
        self.error = self._error(self.centred, self.scales)

    def _error(self, centred: np.ndarray, scales: np.ndarray) -> np.ndarray:
        difference = np.multiply(centred, scales[:, None], out=self._scratch)
        difference -= self.groups
        if self.importance is None:
            return np.einsum("ng,ng->n", difference, difference)
        return np.einsum("ng,ng,ng->n", difference, difference, self.importance)

    def offer(self, scales: np.ndarray) -> None:
        """Keep a scale per group where it is better."""
        scales = _stored(scales)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            inverse = np.where(scales == 0, 0, 1 / scales).astype(np.float32)
            centred = self.groups * inverse[:, None]
        np.rint(centred, out=centred)
        np.clip(centred, self.format.low - self.format.zero, self.format.high - self.format.zero, out=centred)
        error = self._error(centred, scales)
        better = np.flatnonzero(error < self.error)
        self.centred[better], self.scales[better], self.error[better] = centred[better], scales[better], error[better]

    def refit(self) -> None:
        """Offer the least-squares scale of the codes chosen."""
        q = self.centred
        weighted = q if self.importance is None else q * self.importance
        squares = np.einsum("ng,ng->n", weighted, q)
        products = np.einsum("ng,ng->n", weighted, self.groups)
        self.offer(np.divide(products, squares, out=self.scales.copy(), where=squares > 0))


def _stored(scales: np.ndarray) -> np.ndarray:
    """Scales rounded to fp16; those out of range are left unchanged, and refused later with the tensor's name."""
    with np.errstate(over="ignore"):
        held = scales.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(held), held, scales).astype(np.float32)
