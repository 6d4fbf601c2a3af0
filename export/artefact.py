"""What every export gives back, and which files it must not write over."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeformer.checkpoint import TOKENIZER_FILES, LoadedModel


@dataclass(frozen=True)
class Exported:
    """What an export wrote. Sizes in bytes; `notes` are for the user."""

    folder: Path
    manifest: dict[str, Any]
    notes: list[str]


def source_files(loaded: LoadedModel) -> set[Path]:
    """The files that the model is read from."""
    files = {t.file for source in loaded.require_weights().sources.values() for t in source.stored.parts()}
    if loaded.folder is not None:
        files.add(loaded.folder)
    elif Path(loaded.name).exists():
        files.add(Path(loaded.name))
    return files


def copy_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """The model's tokenizer files, unchanged."""
    for name in TOKENIZER_FILES:
        if loaded.folder is not None and (file := loaded.folder / name).exists():
            shutil.copyfile(file, folder / name)
