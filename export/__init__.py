"""Exporters: one package per format, each with an `exporter.py`. `dispatch` finds them by name."""

import pkgutil


def formats() -> tuple[str, ...]:
    """What MODEL can be exported to: the packages in this one."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg))
