"""How a checkpoint is read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgeformer.models._config import HfConfig

HEAD = "a head, left out by --without-head"


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is read: with config keys that the family doesn't know; without its head."""

    allow_unread: bool = False
    without_head: bool = False

    def config(self, data: dict, where: str, stored: Collection[str] | None = None) -> HfConfig:
        """The reader of a config.json."""
        return HfConfig(data, where, stored, without_head=self.without_head)

    def told(self, notes: list[str]) -> list[str]:
        """The notes, and one where there was no head to leave out."""
        idle = self.without_head and not any(note.endswith(HEAD) for note in notes)
        return [*notes, "--without-head had no effect: the model has no head that can be left out"] if idle else notes
