"""Exporters: one package per format, each with an `exporter.py`. `dispatch` looks them up by name."""

import pkgutil


def formats() -> tuple[str, ...]:
    """The formats a model can be exported to: the subpackages of this one, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg))
