"""Finding a group's scale: the fp16 number whose rounded codes leave the smallest weighted squared error."""

from __future__ import annotations

import numpy as np

from edgeformer.formats import GROUP, Format, Rounding, nearest

_STEPS = {4: np.linspace(0.68, 1.16, 25), 8: np.linspace(0.985, 1.015, 7)}
"""Candidates as multiples of the scale that makes a group's largest element the last code. Clipping it is often better."""


def searched(groups: np.ndarray, format: Format, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and fp16-exact scales of groups float32 `[n, 32]`.

    Both signs of the scale are tried (codes reach one step further below zero than above), rounding is to the scale *as
    stored*, and the best candidate is refitted by least squares.

    Args:
        groups: the weights.
        format: q4 or q8.
        weights: importance of each element, `[n, 32]` or `[32]`; equal by default.
    """
    importance = np.broadcast_to(np.float32(1) if weights is None else weights, groups.shape)
    codes, scales = nearest(groups, format)
    scales = _stored(scales)
    best = _Best(groups, importance, format, codes, scales)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)[:, 0]
    for multiple in _STEPS[format.bits]:
        for sign in (-1, 1):
            best.offer(largest * np.float32(sign * multiple / format.zero))
    for _ in range(2):
        best.refit()
    return best.codes, best.scales


def by_channel(importance: np.ndarray) -> Rounding:
    """`searched` with one importance per input, such as the mean square of what that input is on real text."""
    shared = np.maximum(np.asarray(importance, np.float32), 1e-12).reshape(-1, GROUP)
    shared = shared / shared.mean()

    def rounding(groups: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
        return searched(groups, format, np.tile(shared, (len(groups) // len(shared), 1)))

    return rounding


class _Best:
    """The best codes and scales so far, by weighted squared error."""

    def __init__(
        self, groups: np.ndarray, importance: np.ndarray, format: Format, codes: np.ndarray, scales: np.ndarray
    ):
        self.groups, self.importance, self.format = groups, importance, format
        self.codes, self.scales = codes, scales
        self.error = self._error(codes, scales)

    def _error(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        difference = codes.astype(np.float32)
        difference -= self.format.zero
        difference *= scales[:, None]
        difference -= self.groups
        difference *= difference
        return np.einsum("ng,ng->n", difference, self.importance)

    def offer(self, scales: np.ndarray) -> None:
        """Take a scale per group where it is better."""
        scales = _stored(scales)
        codes = rounded(self.groups, scales, self.format)
        error = self._error(codes, scales)
        better = error < self.error
        self.codes[better], self.scales[better], self.error[better] = codes[better], scales[better], error[better]

    def refit(self) -> None:
        """Offer the least-squares scale of the codes chosen."""
        q = self.codes.astype(np.float32) - self.format.zero
        weighted = q * self.importance
        squares = np.einsum("ng,ng->n", weighted, q)
        products = np.einsum("ng,ng->n", weighted, self.groups)
        self.offer(np.divide(products, squares, out=self.scales.copy(), where=squares > 0))


def rounded(groups: np.ndarray, scales: np.ndarray, format: Format) -> np.ndarray:
    """The nearest codes for given scales."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scales == 0, 0, 1 / scales).astype(np.float32)
        y = groups * inverse[:, None]
    y += np.float32(format.zero)
    np.rint(y, out=y)
    return np.clip(y, format.low, format.high, out=y).astype(np.uint8)


def _stored(scales: np.ndarray) -> np.ndarray:
    """As fp16 holds them (out of range: left, to be refused by name later)."""
    with np.errstate(over="ignore"):
        held = scales.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(held), held, scales).astype(np.float32)
