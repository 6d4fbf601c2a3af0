"""From a format's name to its exporter."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

from edgeformer.checkpoint import LoadedModel
from edgeformer.errors import InputError
from edgeformer.export import FORMATS
from edgeformer.export.artefact import Exported


def export_as(loaded: LoadedModel, output: str | os.PathLike, to: str, **options: Any) -> Exported:
    """Write a loaded model in the format `to`, with that exporter's options.

    Raises:
        ExportError: it can't be written as asked; nothing is left behind.
        InputError: there is no such format, or it has no such option.
    """
    if to not in FORMATS:
        raise InputError(f"there is no export to {to!r}; formats are: {', '.join(FORMATS)}")
    write = getattr(importlib.import_module(f"edgeformer.export.{to}"), f"export_{to}")
    known = inspect.signature(write).parameters
    set_by_users = [name for name in list(known)[2:] if name != "progress"]
    if unknown := sorted(options.keys() - known.keys()):
        raise InputError(f"the export to {to} has no option {', '.join(unknown)}; it has {', '.join(set_by_users)}")
    return write(loaded, output, **options)
