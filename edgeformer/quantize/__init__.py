"""Choosing codes and scales: a checkpoint in, a quantized checkpoint out. Each method is a file in `methods/`.

The package is also the function: `edgeformer.quantize(model, folder)` is `edgeformer.api.quantize`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from importlib import import_module  # the API lies above this room; only a call goes up

        return import_module("edgeformer.api").quantize(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
