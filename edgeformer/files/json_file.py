"""The only reader of JSON from outside: bounded in size and depth, regular files only, one clear error.

Python's own reader accepts any size, and raises RecursionError on brackets nested a few thousand deep.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeformer.errors import EdgeformerError
from edgeformer.files.paths import check_regular

MAX_BYTES = 8_000_000
"""Limit for a settings file; the largest known configs (with all labels of ImageNet-21k) have 2 MB."""
MAX_LISTING_BYTES = 100_000_000
"""Limit for a tokenizer's vocabulary or a shard index; a million tokens take about 60 MB."""
MAX_VALUES, MAX_NESTED = 5_000_000, 2_000_000
"""Limits on commas and opening brackets: each becomes a Python object of 30 to 60 bytes, however short it is in the file."""
MAX_DEPTH = 100
"""Limit on nesting; specs and configs have less than 20 levels."""


def read_json_file(file: Path, error: type[EdgeformerError], *, limit: int = MAX_BYTES) -> Any:
    """The content of a JSON file, in UTF-8.

    Raises:
        error: the file is missing, not regular, larger than `limit` bytes, nested deeper than 100 levels, or not JSON.
    """
    size = check_regular(file, error).st_size
    if size > limit:
        raise error(f"{file} has {size:,} bytes; the limit for this kind of file is {limit:,}")
    try:
        with file.open("rb") as f:
            data = f.read(limit + 1)  # it may grow meanwhile
    except OSError as e:
        raise error(f"can't read {file}: {e.strerror}") from e
    return parse_json(data, str(file), error)


def parse_json(data: bytes | str, says: str, error: type[EdgeformerError]) -> Any:
    """The value of a JSON document.

    says: the name of its source, for messages.

    Raises:
        error: it is not JSON in UTF-8, is nested deeper than 100 levels, or holds strings that are not valid Unicode.
    """
    comma, brackets = (",", "[{") if isinstance(data, str) else (b",", (b"[", b"{"))
    if data.count(comma) > MAX_VALUES or sum(map(data.count, brackets)) > MAX_NESTED:  # type: ignore[arg-type]
        raise error(f"{says} holds more than {MAX_VALUES:,} values, or {MAX_NESTED:,} lists and objects")
    try:
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError:
        raise error(f"{says} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as e:
        raise error(f"{says} is not JSON: {str(e)[:200]}") from e
    if _deeper(value, MAX_DEPTH):
        raise error(f"{says} is nested deeper than {MAX_DEPTH} levels")
    if (b"\\u" if isinstance(data, bytes) else "\\u") in data and (half := lone_surrogate(value)) is not None:  # type: ignore[operator]
        raise error(f"{says} is not valid Unicode: {half!a} holds half of a surrogate pair")
    return value


def lone_surrogate(value: object) -> str | None:
    """The first string that can't be encoded as UTF-8: it has an escaped lone surrogate, which no other JSON reader accepts."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            waiting += current.keys()
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current
        elif isinstance(current, str) and not current.isascii():
            try:
                current.encode()
            except UnicodeEncodeError:
                return current[:80]
    return None


def _deeper(value: object, limit: int) -> bool:
    """Whether objects and lists are nested deeper than `limit`."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [v for outer in level for v in (outer.values() if isinstance(outer, dict) else outer)
                 if isinstance(v, (dict, list))] if isinstance(value, (dict, list)) else []  # fmt: skip
        if not level:
            return False
    return True
