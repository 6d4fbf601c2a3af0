"""The token ids of a text file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeformer.checkpoint.companions.files import Companions
from edgeformer.checkpoint.companions.tokenizer import load_tokenizer
from edgeformer.errors import InputError


def ids_of(file: str, around: Companions, limit: int | None = None) -> np.ndarray:
    """Encode a text file with a model's own tokenizer: token ids int64 [T], T at most `limit`.

    Raises:
        InputError: the file is not UTF-8 or has no text.
    """
    try:
        content = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{file} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    ids = load_tokenizer(around).encode(content)
    if not ids:
        raise InputError(f"{file} is empty")
    return np.array(ids[:limit], np.int64)
