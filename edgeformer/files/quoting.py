"""Quote values from files for messages: short and without control characters, as git quotes the names that it prints."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sized
from typing import Any

MAX_VALUE, MAX_ITEMS, MAX_MESSAGE = 200, 20, 4000


def shown(value: object) -> str:
    """The `repr` of a value, cut to 200 characters."""
    if isinstance(value, str):
        text = repr(value[: MAX_VALUE + 1])
    elif isinstance(value, (dict, list, tuple)):
        text = _start(value)
    elif isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length():,} bits"
    else:
        text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 20]}... ({_size(value)})"


def listed(items: Iterable[str], limit: int = MAX_ITEMS) -> str:
    """Names joined by commas; beyond `limit`, the first ones and the total."""
    every = list(items)
    named = map(inline, every[:limit])
    cut = [name if len(name) <= MAX_VALUE else name[: MAX_VALUE - 3] + "..." for name in named]
    return ", ".join(cut) + (f", ... ({len(every):,} in all)" if len(every) > limit else "")


def inline(name: str) -> str:
    """A name on one line: line breaks are escaped, too, so that none starts what looks like another message."""
    return plain(name).replace("\n", "\\n")


def plain(text: str, *, limit: int | None = None) -> str:
    """Make a text safe for a terminal: control and bidirectional characters are escaped, and beyond `limit` characters only the
    beginning and the end are kept. Line breaks stay, since messages have them."""
    if limit is not None and len(text) > limit:
        text = f"{text[: limit * 2 // 3]} ... ({len(text):,} characters) ... {text[-limit // 3 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n " or c in _SPACES else _escape(c) for c in text)


_SPACES = "\u00a0\u2007\u2009\u202f\u3000"
"""Spaces that edgeformer's own tables and messages use, which `str.isprintable` rejects."""


def _escape(c: str) -> str:
    if unicodedata.category(c) == "Zs":
        return c
    return c.encode("unicode_escape").decode("ascii") if c != "\t" else "\t"


def _start(value: dict[Any, Any] | list[Any] | tuple[Any, ...], left: int = MAX_VALUE) -> str:
    """The beginning of a container's `repr`, without building all of it."""
    parts: list[str] = []
    pairs = value.items() if isinstance(value, dict) else ((None, v) for v in value)
    for key, item in pairs:
        text = _start(item, left) if isinstance(item, (dict, list, tuple)) and left > 0 else shown(item)
        parts.append(text if key is None else f"{shown(key)}: {text}")
        left -= len(parts[-1])
        if left <= 0:
            parts.append("..." if len(value) > len(parts) else "")
            break
    inside = ", ".join(p for p in parts if p)
    return f"{{{inside}}}" if isinstance(value, dict) else f"[{inside}]"


def _size(value: object) -> str:
    if isinstance(value, str):
        return f"{len(value):,} characters"
    return f"{len(value):,} items" if isinstance(value, Sized) else "cut"
