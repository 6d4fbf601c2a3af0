"""Run programs from a model's folder in a process of their own, with limits on time and memory.

A chat template and a tokenizer's patterns are programs: a few characters of either can run forever or fill the memory, and
neither Jinja's sandbox nor a regular-expression engine can be stopped from outside. The process sets its own alarm and its own
limit, so it ends even when its parent is gone.
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
from typing import IO, Any

from edgeformer.files.trust import isolated

MAX_ANSWER = 256_000_000


class GuardedFailed(Exception):
    """A call was refused, exceeded a limit, or ended its process; the message says which."""


class GuardedLimit(GuardedFailed):
    """A call exceeded its limit of time or memory."""


class Guarded:
    """A process that answers one call at a time, started when it is first needed.

    Args:
        megabytes: limit of its address space.
        first: a call that every new process answers first.
    """

    def __init__(self, megabytes: int, first: tuple[str, Mapping[str, Any]] | None = None):
        self.megabytes, self._first = megabytes, first
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._opened = 0, None

    def started(self) -> Any:
        """The running process's answer to its first call; starts a process if there is none.

        Raises:
            GuardedFailed: the call failed; the message has the reason.
        """
        if self._process is None or self._owner != os.getpid():  # after a fork, the pipe is the parent's
            self._start()
            self._opened = None if self._first is None else self._call(self._first[0], 60.0, self._first[1])
        return self._opened

    def ask(self, do: str, seconds: float, **arguments: object) -> Any:
        """The answer to one call, which may take `seconds`.

        Raises:
            GuardedFailed: the call failed; the message has the reason.
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
            raise GuardedLimit(
                f"its process ended ({what}), as happens when {self.megabytes} MB of memory are not enough"
            )
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


def send(pipe: IO[bytes], message: dict[str, Any]) -> None:
    """Write a message: its length, and JSON."""
    data = json.dumps(message).encode()
    with contextlib.suppress(BrokenPipeError):  # `receive` then finds that the process is gone
        pipe.write(struct.pack("<Q", len(data)) + data)
        pipe.flush()


def receive(pipe: IO[bytes]) -> dict[str, Any] | None:
    """Read a message; None if the other side is gone."""
    head = pipe.read(8)
    if len(head) < 8 or (length := struct.unpack("<Q", head)[0]) > MAX_ANSWER:
        return None
    data = pipe.read(length)
    return json.loads(data) if len(data) == length else None


__all__ = ["Guarded", "GuardedFailed", "GuardedLimit", "receive", "send"]
