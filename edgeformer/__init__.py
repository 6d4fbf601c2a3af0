"""edgeformer: one transformer spec, native builds that are checked to agree, and honest latency tables.

`import edgeformer` loads no framework; the names below import what they need on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "EdgeformerError": "edgeformer.errors",
    "LoadedModel": "edgeformer.checkpoint.loading",
    "compare": "edgeformer.measure.comparison",
    "load_balancing": "edgeformer.ops.expert_balance",
    **dict.fromkeys(
        ("bench", "build_mlx", "build_torch", "export", "load", "native_library", "quantize", "save", "verify"),
        "edgeformer.api",
    ),
}

if TYPE_CHECKING:
    from edgeformer.api import bench, build_mlx, build_torch, export, load, native_library, quantize, save, verify
    from edgeformer.checkpoint.loading import LoadedModel
    from edgeformer.errors import EdgeformerError
    from edgeformer.measure.comparison import compare
    from edgeformer.ops.expert_balance import load_balancing

__all__ = [
    "EdgeformerError",
    "LoadedModel",
    "__version__",
    "bench",
    "build_mlx",
    "build_torch",
    "compare",
    "export",
    "load",
    "load_balancing",
    "native_library",
    "quantize",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeformer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
