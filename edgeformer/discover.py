"""Finds families, layers, runtimes and commands by file name; there is no central list.

A part named `x` is the module `<package>.x`. Packages outside edgeformer add their own through entry points whose group
is the package's name (`edgeformer.layers`, `edgeformer.models`, `edgeformer.runtimes`) and whose value is a module.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from types import ModuleType


@cache
def _entry_points(package: str) -> dict[str, str]:
    from importlib.metadata import entry_points  # 15 ms: only when something outside the package is asked for

    return {point.name: point.value for point in entry_points(group=package)}


def names(package: str, *, private: bool = False) -> list[str]:
    """Sorted names of the parts of `package`: its files, and the entry points of others."""
    path = importlib.import_module(package).__path__
    files = [m.name for m in pkgutil.iter_modules(path) if private or not m.name.startswith("_")]
    return sorted({*files, *_entry_points(package)})


def find(package: str, name: str) -> ModuleType | None:
    """The module of the part `name`, or None when there is none. An import error *inside* the part is not swallowed."""
    if name.isidentifier() and importlib.util.find_spec(f"{package}.{name}") is not None:
        return importlib.import_module(f"{package}.{name}")
    target = _entry_points(package).get(name)
    return None if target is None else importlib.import_module(target)
