"""Finds families, layers, runtimes and commands by file name; there is no central list.

A part named `x` is the module `<package>.x`. Packages outside edgeformer add their own through entry points whose group
is the package's name (`edgeformer.layers`, `edgeformer.models`, `edgeformer.runtimes`) and whose value is a module.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from edgeformer.errors import PluginError, is_fault
from edgeformer.files.quoting import plain

T = TypeVar("T")

_plugins: dict[str, tuple[str, str]] = {}  # by module: the group and the name of the entry point that led to it


@cache
def _entry_points(package: str) -> dict[str, str]:
    from importlib.metadata import entry_points  # 15 ms: imported only when a plug-in is looked up

    return {point.name: point.value for point in entry_points(group=package)}


def names(package: str, *, private: bool = False) -> list[str]:
    """Sorted names of the parts of `package`: its own modules, and the entry points of plug-ins."""
    path = importlib.import_module(package).__path__
    files = [m.name for m in pkgutil.iter_modules(path) if private or not m.name.startswith("_")]
    return sorted({*files, *_entry_points(package)})


def find(package: str, name: str) -> ModuleType | None:
    """The module of the part `name`, or None when there is none.

    Raises:
        PluginError: the part is a plug-in, and importing it fails. Errors inside edgeformer's own parts pass unchanged.
    """
    if name.isidentifier() and importlib.util.find_spec(f"{package}.{name}") is not None:
        return importlib.import_module(f"{package}.{name}")
    if (target := _entry_points(package).get(name)) is None:
        return None
    _plugins[target] = package, name
    try:
        return importlib.import_module(target)
    except BaseException as e:
        if not is_fault(e) and not isinstance(e, SystemExit):
            raise
        raise fault_of(package, name, e) from e


def declared(module: ModuleType, name: str, kind: type[T]) -> T:
    """What a part declares under `name`: a class (`kind` is then `type`), or an object of the class `kind`.

    Raises:
        PluginError: the module declares nothing under this name, or something else.
    """
    found = _attribute(module, name)
    if not isinstance(found, kind):
        raise _undeclared(module, name, "a class" if kind is type else f"an object of type {kind.__name__}", found)
    return found


def function(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function that a part declares under `name`.

    Raises:
        PluginError: the module declares nothing under this name, or something that can't be called.
    """
    found = _attribute(module, name)
    if not callable(found):
        raise _undeclared(module, name, "a function", found)
    return found


def _attribute(module: ModuleType, name: str) -> object:
    try:
        return getattr(module, name, None)
    except Exception as e:  # a plug-in's own `__getattr__`
        if (plugin := _plugins.get(module.__name__)) is None:
            raise
        raise fault_of(*plugin, e) from e


def _undeclared(module: ModuleType, name: str, wanted: str, found: object) -> PluginError:
    has = "nothing" if found is None else f"an object of type {type(found).__name__}"
    must = f"must define {name}, {wanted}, but defines {has}; CONTRIBUTING.md shows what a file there declares"
    if (plugin := _plugins.get(module.__name__)) is None:
        return PluginError(f"{module.__name__} {must}")
    return PluginError(
        f"the plug-in {plugin[1]!r} of {plugin[0]} ({module.__name__}) is broken: it {must}; fix or uninstall it"
    )


def is_plugin(package: str, name: str) -> bool:
    """Whether a part comes from a plug-in."""
    return name in _entry_points(package) and importlib.util.find_spec(f"{package}.{name}") is None


def each(package: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield (name, module) of every part; a plug-in that can't be imported is skipped with a warning."""
    for name in names(package):
        with sparing(package, name):
            module = find(package, name)
            if module is not None:
                yield name, module


@contextlib.contextmanager
def sparing(package: str, name: str) -> Iterator[None]:
    """Guard work on one part of many: a plug-in that fails is reported in a warning and doesn't stop the others."""
    try:
        yield
    except PluginError as e:
        _warn(str(e))
    except BaseException as e:
        if not is_fault(e) or not is_plugin(package, name):
            raise
        _warn(str(fault_of(package, name, e)))


def fault_of(package: str, name: str, error: BaseException) -> PluginError:
    """The `PluginError` that names a plug-in and the exception it raised."""
    said = plain(str(error), limit=500)
    return PluginError(
        f"the plug-in {name!r} of {package} ({_entry_points(package)[name]}) is broken: {type(error).__name__}: {said};"
        " fix it or uninstall it"
    )


@cache
def _warn(text: str) -> None:
    """Log a warning once per process."""
    logging.getLogger("edgeformer").warning("warning: %s", text)
