"""What a run has measured so far, on disk: a line per event, so that a run that was killed can go on.

The journal of a run lies in the user's cache folder under a key made of everything that the run's numbers depend on: what is
run, how, and with which versions. A line that was cut off in the middle of writing is ignored.
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
"""The fields of a row that an event `row` holds; rounds are events of their own."""


class Event(TypedDict):
    """A line. `at`: the shape's number, and the row's; the other keys go with the kind of event."""

    event: Literal["run", "row", "round", "shape"]
    run_id: NotRequired[str]
    at: NotRequired[list[int]]
    row: NotRequired[dict[str, Any]]
    round: NotRequired[dict[str, Any]]
    conditions: NotRequired[dict[str, Any]]


def key_of(plans: list[Plan], settings: Settings, identity: dict[str, Any]) -> str:
    """Sixteen hex digits over what is run and how. identity: digests of the models and versions of what runs them."""
    told = {"plans": [asdict(p) for p in plans], "settings": asdict(settings), **identity}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """Events of one run. `run_id` names it in its records, also after it was resumed."""

    def __init__(self, file: Path, run_id: str, events: list[dict[str, Any]], lock: Lock):
        self.file, self.run_id, self.events, self._lock = file, run_id, events, lock
        self._open = None
        self.broken: str | None = None

    @classmethod
    def begin(cls, key: str, *, resume: bool) -> tuple[Journal, str | None]:
        """The journal of a run, new or gone on with; and a remark.

        Raises:
            InputError: there is nothing to resume, or the cache folder can't be written.
        """
        file = cache_folder("runs") / f"{key}.jsonl"
        try:
            lock = lock_of(file, timeout=0)
        except Held:
            raise InputError("the same measurement is running already; wait for it, or end it") from None
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
                    "there is no unfinished run of this: --resume goes on with one of the same sources, runtimes, settings and"
                    " versions. Run it without --resume"
                )
            return cls(file, found[0]["run_id"], found[1:], lock), None
        remark = (
            "an unfinished run of the same was discarded; --resume would have gone on with it" if unfinished else None
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

    def add(self, event: str, at: tuple[int, int], **data: Any) -> None:
        """Append an event of a row (its shape's number, its own), and have it on disk.

        A disk that is full is no reason to stop measuring: `broken` then says why nothing is kept any more.
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
                f"what is measured could not be kept in {self.file}: {e.strerror}; --resume will not know of it"
            )

    def _mend(self) -> None:
        """Cut off a last line that was not written to its end."""
        data = self.file.read_bytes()
        if data and not data.endswith(b"\n"):
            self.file.write_bytes(data[: data.rfind(b"\n") + 1])

    def save(self, at: tuple[int, int], row: Row) -> None:
        """All of a row but its rounds."""
        kept = {name: getattr(row, name) for name in KEPT}
        self.add("row", at, row=kept | {"flags": [flag.as_dict() for flag in row.flags]})

    def restore(self, at: tuple[int, int], row: Row) -> None:
        """What was known about a row, put into it. One that failed or ran out of time is tried again."""
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
        """What was said when a shape was measured to its end, or None if it was not."""
        ends = [e for e in self.events if e["event"] == "shape" and e["at"][0] == shape]
        return ends[-1]["conditions"] if ends else None

    def close(self, *, finished: bool) -> None:
        """The run is over: a finished one needs its journal no more."""
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
            return  # cut off
        if mismatch(event, Event) is not None or (
            event["event"] == "row" and not set(KEPT) <= event.get("row", {}).keys()
        ):
            return  # damaged: it and what follows is measured again
        told = event.get("row") if event["event"] == "row" else event.get("conditions")
        if told is not None and mismatch(told.get("flags"), list[FlagData]) is not None:
            return
        yield event
