"""Custom Metal kernels for decoding, through `mx.fast.metal_kernel`: one `.metal` body and one Python file each.

A kernel's op-level body is its reference and its fallback; `cases` are its test cases, run in an emulator on Linux and on a Mac.
A kernel is used only if it is switched on explicitly or was measured to be faster on this machine (`edgeformer tune`).
"""

from __future__ import annotations

from edgeformer import discover
from edgeformer.backends.mlx.metal._kernel import Kernel
from edgeformer.errors import InputError

PACKAGE = "edgeformer.backends.mlx.metal"


def names() -> list[str]:
    """The names of all kernels."""
    return discover.names(PACKAGE)


def get(name: str) -> Kernel:
    """The kernel with this name, ready to be called.

    Raises:
        InputError: there is no such kernel.
    """
    module = None if name.startswith("_") else discover.find(PACKAGE, name)
    if module is None:
        raise InputError(f"unknown Metal kernel {name!r}; kernels are {', '.join(names())}")
    return discover.declared(module, "KERNEL", type)()


__all__ = ["Kernel", "get", "names"]
