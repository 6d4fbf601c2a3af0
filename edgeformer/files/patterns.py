"""Regular expressions read from files: only those that match or fail quickly on short strings."""

from __future__ import annotations

import re

from edgeformer.errors import EdgeformerError
from edgeformer.files.quoting import shown

MAX_LENGTH, MAX_REPEATS = 1000, 4
_ESCAPED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{)")
_REPEATS = re.compile(r"[*+]|\{\d*,")


def bounded(pattern: str, says: str, error: type[EdgeformerError]) -> re.Pattern[str]:
    """Compile a pattern that was read from a file.

    Python's engine backtracks: where a repeated group holds a repetition, each character doubles the time. Module names need
    neither repeated groups nor more than a few repetitions.

    Args:
        pattern: the text as it was read.
        says: the file or key that holds it, for messages.
        error: the class to raise.

    Raises:
        error: the pattern is invalid or longer than 1,000 characters, or has a repeated group, a back-reference or more than
            four repetitions.
    """
    bare = _ESCAPED.sub("x", pattern)
    references = re.search(r"\\[1-9]|\(\?P=", pattern)
    if (
        len(pattern) > MAX_LENGTH
        or references
        or _REPEATED_GROUP.search(bare)
        or len(_REPEATS.findall(bare)) > MAX_REPEATS
    ):
        raise error(f"{says} has the pattern {shown(pattern)}, which may take forever to match; list the names instead")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as e:
        raise error(f"{says} has {shown(pattern)}, which is not a regular expression: {e}") from e
