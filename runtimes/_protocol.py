"""The former place of `edgeformer.inference.runtime`, for runtimes of other packages that import it from here."""

from __future__ import annotations

import warnings
from typing import Any

from edgeformer.inference import runtime


def __getattr__(name: str) -> Any:
    if not hasattr(runtime, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "edgeformer.runtimes._protocol is edgeformer.inference.runtime now; import it from there",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(runtime, name)
