"""Programs of a model's folder, run in a process of their own that may take so much time and memory.

A chat template and the patterns of a tokenizer are programs: a few characters of either run for ever, or fill the memory, and
neither Jinja's sandbox nor a regular expression's engine can be stopped from outside. The process sets its own alarm and its own
limit, so that it ends also when nobody is left to end it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from edgeformer.files.trust import isolated

MAX_ANSWER = 256_000_000


class GuardedFailed(Exception):
    """What ran there was refused, took too long or too much, or ended its process; the message says which."""


class GuardedLimit(GuardedFailed):
    """It took longer, or more memory, than it may."""


class Guarded:
    """A process that answers one call at a time, started when it is first needed.

    Args:
        megabytes: of address space that it may take, all in all.
        first: a call that every new process gets first.
    """

    def __init__(self, megabytes: int, first: tuple[str, Mapping[str, Any]] | None = None):
        self.megabytes, self._first = megabytes, first
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._opened = 0, None

    def started(self) -> Any:
        """What the first call of the process that runs was answered.

        Raises:
            GuardedFailed: with the reason.
        """
        if self._process is None or self._owner != os.getpid():  # a forked process has a pipe that is another's
            self._start()
            self._opened = None if self._first is None else self._call(self._first[0], 60.0, self._first[1])
        return self._opened

    def ask(self, do: str, seconds: float, **arguments: Any) -> Any:
        """The answer to one call, of at most so many seconds.

        Raises:
            GuardedFailed: with the reason.
        """
        self.started()
        return self._call(do, seconds, arguments)

    def _start(self) -> None:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"} | isolated(os.environ)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgeformer.checkpoint.companions.guarded_worker", str(self.megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._owner = os.getpid()
        atexit.register(self.close)

    def _call(self, do: str, seconds: float, arguments: Mapping[str, Any]) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            send(process.stdin, {"do": do, "seconds": seconds, "with": dict(arguments)})
            answer = receive(process.stdout)
        except BaseException:
            self.close()
            raise
        if answer is None:
            status = process.wait()
            self.close()
            if status == -signal.SIGALRM:
                raise GuardedLimit(f"it took longer than {seconds:g} s")
            what = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise GuardedLimit(f"its process ended ({what}), as it does when {self.megabytes} MB are not enough")
        if "limit" in answer:
            raise GuardedLimit(answer["limit"])
        if "error" in answer:
            raise GuardedFailed(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        """End the process; the next call starts another."""
        process, self._process = self._process, None
        atexit.unregister(self.close)
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


def send(pipe: Any, message: dict[str, Any]) -> None:
    """Write a message: its length, and JSON."""
    data = json.dumps(message).encode()
    with contextlib.suppress(BrokenPipeError):  # the answer says that nobody is there
        pipe.write(struct.pack("<Q", len(data)) + data)
        pipe.flush()


def receive(pipe: Any) -> dict[str, Any] | None:
    """Read a message; None where the other side is gone."""
    head = pipe.read(8)
    if len(head) < 8 or (length := struct.unpack("<Q", head)[0]) > MAX_ANSWER:
        return None
    data = pipe.read(length)
    return json.loads(data) if len(data) == length else None


__all__ = ["Guarded", "GuardedFailed", "GuardedLimit", "receive", "send"]
