"""Custom Metal kernels for decoding, through `mx.fast.metal_kernel`: one `.metal` body and one Python file each.

A kernel's op-level body is its definition and its fallback; `cases` are what it is checked on, in an emulator on Linux and on
a Mac. None is used unless it was switched on or measured to be faster on the machine at hand (`edgeformer tune`).
"""

from __future__ import annotations

from edgeformer import discover
from edgeformer.backends.mlx.metal._kernel import Kernel
from edgeformer.errors import InputError

PACKAGE = "edgeformer.backends.mlx.metal"


def names() -> list[str]:
    """All kernels."""
    return discover.names(PACKAGE)


def get(name: str) -> Kernel:
    """A kernel, ready to be called.

    Raises:
        InputError: there is none of this name.
    """
    module = None if name.startswith("_") else discover.find(PACKAGE, name)
    if module is None:
        raise InputError(f"there is no Metal kernel {name!r}; kernels are {', '.join(names())}")
    return module.KERNEL()


__all__ = ["Kernel", "get", "names"]
