"""Codes of a few bits, packed into 32-bit words."""

from __future__ import annotations

import numpy as np


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., n · 32 / bits] of words uint32 [..., n], one after the other from the lowest bits. Where 32 is no
    multiple of `bits`, codes lie across words."""
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = (packed[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    else:  # eight codes in `bits` bytes
        octets = np.ascontiguousarray(packed).view(np.uint8).reshape(-1, bits).astype(np.uint64)
        words = (octets << (np.arange(bits, dtype=np.uint64) * np.uint64(8))).sum(-1, dtype=np.uint64)
        shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
        codes = (words[:, None] >> shifts) & np.uint64((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(*packed.shape[:-1], -1)
