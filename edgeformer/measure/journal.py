"""On-disk journal of a run, one line per event, so that a killed run can be resumed.

A run's journal lies in the user's cache folder, under a key of everything its numbers depend on: models, settings and
versions. A truncated line is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from edgeformer.errors import InputError
from edgeformer.files.cache import cache_folder, lock_file, lock_of
from edgeformer.files.locks import Held, Lock
from edgeformer.files.typed import mismatch
from edgeformer.measure.flags import Flag, FlagCode, FlagData
from edgeformer.measure.row import Plan, Row
from edgeformer.measure.settings import Settings

KEPT = (
    "status", "error", "verdict", "checks", "reference", "load_s", "first", "discarded", "settled", "quality", "memory",
    "energy", "blocks", "versions", "facts", "flags", "processes", "measured",
)  # fmt: skip
"""The fields of a row that a `row` event holds; rounds are separate events."""


class Event(TypedDict):
    """One line. `at`: (shape index, row index); the other keys depend on the kind of event."""

    event: Literal["run", "row", "round", "shape"]
    run_id: NotRequired[str]
    at: NotRequired[list[int]]
    row: NotRequired[dict[str, Any]]
    round: NotRequired[dict[str, Any]]
    conditions: NotRequired[dict[str, Any]]


def key_of(plans: list[Plan], settings: Settings, identity: dict[str, Any]) -> str:
    """Sixteen hex digits over plans and settings. identity: digests of the models, and the runtimes' versions."""
    told = {"plans": [asdict(p) for p in plans], "settings": asdict(settings), **identity}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """The events of one run. Its records carry `run_id`, which stays the same when the run is resumed."""

    def __init__(self, file: Path, run_id: str, events: list[dict[str, Any]], lock: Lock):
        self.file, self.run_id, self.events, self._lock = file, run_id, events, lock
        self._open = None
        self.broken: str | None = None

    @classmethod
    def begin(cls, key: str, *, resume: bool) -> tuple[Journal, str | None]:
        """Open a run's journal, new or resumed; also returns a note for the user, or None.

        Raises:
            InputError: there is nothing to resume, the same run is in progress, or the cache folder can't be written.
        """
        file = cache_folder("runs") / f"{key}.jsonl"
        try:
            lock = lock_of(file, timeout=0)
        except Held:
            raise InputError("the same measurement is already running; wait for it to finish, or stop it") from None
        except OSError as e:
            raise InputError(
                f"can't write {file}: {e.strerror}. Set EDGEFORMER_CACHE to a folder that can be written"
            ) from e
        found = list(_events(file)) if file.exists() else []
        unfinished = bool(found) and found[0].get("event") == "run"
        if resume:
            if not unfinished:
                lock.release()
                raise InputError(
                    "no unfinished run to resume: --resume continues a run with the same sources, runtimes, settings and"
                    " versions. Run without --resume"
                )
            return cls(file, found[0]["run_id"], found[1:], lock), None
        remark = (
            "an unfinished run of the same measurement was discarded; --resume would have continued it"
            if unfinished
            else None
        )
        made = cls(file, uuid.uuid4().hex, [], lock)
        try:
            file.write_text(json.dumps({"event": "run", "run_id": made.run_id}) + "\n")
        except OSError as e:
            lock.release()
            raise InputError(
                f"can't write {file}: {e.strerror}. Set EDGEFORMER_CACHE to a folder that can be written"
            ) from e
        return made, remark

    def add(self, event: str, at: tuple[int, int], **data: object) -> None:
        """Append an event for a row, `at` (shape index, row index), and sync it to disk.

        A write error, such as a full disk, doesn't stop the measurement: `broken` then holds the reason.
        """
        if self.broken is not None:
            return
        try:
            if self._open is None:
                self._mend()
                self._open = self.file.open("a", encoding="utf-8")
            self._open.write(json.dumps({"event": event, "at": at, **data}) + "\n")
            self._open.flush()
            os.fsync(self._open.fileno())
        except OSError as e:
            self.broken = (
                f"can't write the journal {self.file}: {e.strerror}; --resume can't restore what was measured since"
            )

    def _mend(self) -> None:
        """Remove a truncated last line."""
        data = self.file.read_bytes()
        if data and not data.endswith(b"\n"):
            self.file.write_bytes(data[: data.rfind(b"\n") + 1])

    def save(self, at: tuple[int, int], row: Row) -> None:
        """Write all of a row except its rounds."""
        kept = {name: getattr(row, name) for name in KEPT}
        self.add("row", at, row=kept | {"flags": [flag.as_dict() for flag in row.flags]})

    def restore(self, at: tuple[int, int], row: Row) -> None:
        """Restore a row's state from the journal. A row that failed or hit its time limit is tried again."""
        for event in self.events:
            if tuple(event["at"]) != at:
                continue
            if event["event"] == "row":
                for name in KEPT:
                    setattr(row, name, event["row"][name])
                row.flags = [Flag.of(flag) for flag in event["row"]["flags"]]
            elif event["event"] == "round":
                row.rounds.append(event["round"])
        if self.finished(at[0]) is None:
            row.status, row.error = "ok", None
            row.flags = [flag for flag in row.flags if flag.code is not FlagCode.TIME_LIMIT]

    def finished(self, shape: int) -> dict[str, Any] | None:
        """The conditions and flags recorded when a shape was completed, or None if it wasn't."""
        ends = [e for e in self.events if e["event"] == "shape" and e["at"][0] == shape]
        return ends[-1]["conditions"] if ends else None

    def close(self, *, finished: bool) -> None:
        """Close the journal, and delete it if the run has finished."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()
            self._open = None
        if finished:
            self.file.unlink(missing_ok=True)
            lock_file(self.file).unlink(missing_ok=True)
        self._lock.release()


def _events(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return  # truncated
        if mismatch(event, Event) is not None or (
            event["event"] == "row" and not set(KEPT) <= event.get("row", {}).keys()
        ):
            return  # damaged: this event and all later ones are measured again
        told = event.get("row") if event["event"] == "row" else event.get("conditions")
        if told is not None and mismatch(told.get("flags"), list[FlagData]) is not None:
            return
        yield event
