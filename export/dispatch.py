"""Look up an exporter by its format's name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from edgeformer.checkpoint.artefact import Exported
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.discover import function
from edgeformer.errors import InputError
from edgeformer.exporters import formats


class Exporter(Protocol):
    """The type of `EXPORTER` in a format's `exporter.py`: writes a loaded model into a folder, with format-specific options."""

    def __call__(
        self,
        loaded: LoadedModel,
        output: str | os.PathLike,
        /,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Exported: ...


def exporter(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        InputError: there is no such format.
    """
    if name not in formats():
        raise InputError(f"unknown export format {name!r}; formats are: {', '.join(formats())}")
    return function(import_module(f"edgeformer.exporters.{name}.exporter"), "EXPORTER")


def export_as(loaded: LoadedModel, output: str | os.PathLike, to: str, **options: Any) -> Exported:
    """Export a loaded model to the format `to`, with that exporter's options.

    Raises:
        ExportError: the model can't be written as requested; nothing is left behind.
        InputError: there is no such format, or it has no such option.
    """
    write = exporter(to)
    known = inspect.signature(write).parameters
    set_by_users = [name for name in list(known)[2:] if name != "progress"]
    if unknown := sorted(options.keys() - known.keys()):
        raise InputError(f"the export to {to} has no option {', '.join(unknown)}; it has {', '.join(set_by_users)}")
    return write(loaded, output, **options)
