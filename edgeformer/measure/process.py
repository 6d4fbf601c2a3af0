"""The harness's side of a worker process: start it, send it commands, and survive its crashes and timeouts."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from edgeformer.files.trust import granted, isolated


class WorkerFailed(Exception):
    """The worker answered with an error, died, or took too long."""


class WorkerLate(WorkerFailed):
    """The worker exceeded its time limit and was killed."""


def _meaning(status: int) -> str:
    """Explanation of an exit status, or "" if there is none."""
    if status == -9:
        return " (SIGKILL, as sent by Linux when memory runs out)"
    return f" ({signal.Signals(-status).name})" if status < 0 else ""


class _Guard:
    """Kills a worker's process group when this process ends in any way, since a worker in a long call can't notice that itself.
    A shell waits on a pipe whose other end only this process holds.

    worker: the PID of a process group leader.
    """

    def __init__(self, worker: int):
        self._process: subprocess.Popen | None = None
        if shutil.which("sh") is None:  # Windows
            return
        self._process = subprocess.Popen(
            [
                "sh",
                "-c",
                'read -r _; kill -s KILL -- "-$0"',
                str(worker),
            ],  # dash doesn't accept -KILL before a process group
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """Stop guarding. Call this before waiting for the worker: afterwards its PID may be reused."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class WorkerProcess:
    """One row's process. Its environment sets the thread counts of numerical libraries."""

    def __init__(self, threads: int, scratch: Path | None = None):
        count = str(threads)
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), count
        )
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        environment |= isolated(environment)
        if scratch is not None:  # leftovers of a killed process are deleted with the run
            environment["TMPDIR"] = str(scratch)
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgeformer.measure.worker", *granted()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,  # only the harness handles Ctrl-C, and keeps the rows measured so far
        )
        self._guard = _Guard(self._process.pid)
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, do: str, timeout: float, limit: float, **arguments: object) -> Any:
        """Run one worker command within `timeout` seconds, the rest of the row's `limit`.

        Raises:
            WorkerFailed: the worker answered with an error or died; the message has its exit status and last output line.
            WorkerLate: the time limit was exceeded.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.close(kill=True)
            raise WorkerLate(f"no answer to {do!r}: the row exceeded its time limit of {limit:g} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise WorkerFailed(f"the process exited with status {status}{_meaning(status)}: {self.last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            self.close(kill=True)
            raise WorkerFailed(f"the process answered {line[:100]!r}, not JSON: other output got mixed in") from None
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer["ok"]

    def last_words(self) -> str:
        """The last line the process printed, at most 300 characters."""
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no output"

    def close(self, *, kill: bool = False) -> None:
        """End the process."""
        self._guard.release()
        if kill:
            self._kill()
        elif self._process.stdin is not None:
            with contextlib.suppress(OSError):  # a dead process leaves a broken pipe
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        """Kill the process and its descendants, such as a browser."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        self._process.kill()
