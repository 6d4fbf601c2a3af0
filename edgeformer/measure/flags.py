"""Flags that mark a number as doubtful: a code for programs, and a text for display only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict


class FlagCode(StrEnum):
    """The kinds of flags."""

    BUSY = "busy"
    CACHE_COPIED = "cache-copied"
    CACHE_DTYPE = "cache-dtype"
    FALLBACK = "fallback"
    NOISY = "noisy"
    NOT_INTERLEAVED = "not-interleaved"
    NOT_MEASURED = "not-measured"
    NOT_SETTLED = "not-settled"
    POWER = "power"
    REFERENCE = "reference"
    SLOWER_THAN_FP32 = "slower-than-fp32"
    SPREAD = "spread"
    THREADS = "threads"
    THROTTLED = "throttled"
    TIME_LIMIT = "time-limit"


class FlagData(TypedDict):
    """A flag as JSON."""

    code: FlagCode
    text: str


@dataclass(frozen=True)
class Flag:
    """A flag on a row, or on all rows of a shape."""

    code: FlagCode
    text: str

    def as_dict(self) -> FlagData:
        """Plain JSON data."""
        return {"code": self.code, "text": self.text}

    @classmethod
    def of(cls, data: FlagData) -> Flag:
        """Inverse of `as_dict`."""
        return cls(FlagCode(data["code"]), data["text"])
