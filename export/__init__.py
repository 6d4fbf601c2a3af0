"""Exporters, a file each. `onnx.py` has one lowering per file in `targets/`, and native kernels in `kernels/`.

The package is also the function: `edgeformer.export(model, folder)` is `edgeformer.api.export`. Importing any submodule
binds the name `edgeformer.export` to this package, so it has to answer calls whichever came first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

FORMATS = ("onnx", "mlx", "gguf", "hf")
"""What MODEL can be exported to; `x` is `export_x` in `x.py`."""


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from importlib import import_module  # the API lies above this room; only a call goes up

        return import_module("edgeformer.api").export(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
