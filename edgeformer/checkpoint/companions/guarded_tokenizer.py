"""A tokenizer with patterns of its own, run in a process with limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeformer.checkpoint.companions.guarded import Guarded, GuardedFailed
from edgeformer.errors import InputError
from edgeformer.files.quoting import plain

SECONDS, BYTES_PER_SECOND = 10.0, 100_000
"""Time limit for a text: seconds, and bytes that extend it by one; usual tokenizers read some megabytes per second."""


@dataclass
class GuardedTokenizer:
    """A `FastTokenizer` in a process of its own, since its file's patterns may run forever on some texts."""

    process: Guarded
    named: dict[str, str]
    where: str

    def _ask(self, do: str, size: int, **arguments: object) -> Any:
        """size: of the text, in characters, which extends the time limit."""
        try:
            return self.process.ask(do, SECONDS + size / BYTES_PER_SECOND, **arguments)
        except GuardedFailed as e:
            raise InputError(f"{self.where}: its tokenizer fails on this text: {plain(str(e), limit=500)}") from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return self._ask("encode", len(text), text=text, special=special)

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        return self._ask("decode", len(ids) * 10, ids=[int(i) for i in ids], special=special)

    def id_of(self, token: str) -> int | None:
        return self._ask("id_of", 0, token=token)

    def special(self) -> list[str]:
        return self._ask("special", 0)

    def to_json(self) -> str | None:
        return self._ask("to_json", 10**7)
