"""Regular expressions that a file gives: only those that a short text matches, or doesn't, in a short time."""

from __future__ import annotations

import re

from edgeformer.errors import EdgeformerError
from edgeformer.files.quoting import shown

MAX_LENGTH, MAX_REPEATS = 1000, 4
_ESCAPED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{)")
_REPEATS = re.compile(r"[*+]|\{\d*,")


def bounded(pattern: str, says: str, error: type[EdgeformerError]) -> re.Pattern[str]:
    """A pattern of a file, compiled.

    Python's engine backtracks: where a repeated group holds a repetition, each character doubles the time. Names of modules need
    neither groups that are repeated nor more than a few repetitions.

    Args:
        pattern: as it was read.
        says: what gives it, for the message.
        error: the class to raise.

    Raises:
        error: it is no pattern, longer than 1,000 characters, repeats a group, refers back, or repeats more than four times.
    """
    bare = _ESCAPED.sub("x", pattern)
    references = re.search(r"\\[1-9]|\(\?P=", pattern)
    if (
        len(pattern) > MAX_LENGTH
        or references
        or _REPEATED_GROUP.search(bare)
        or len(_REPEATS.findall(bare)) > MAX_REPEATS
    ):
        raise error(f"{says} has the pattern {shown(pattern)}, which may take for ever to match; write out the names")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as e:
        raise error(f"{says} has {shown(pattern)}, which is no regular expression: {e}") from e
