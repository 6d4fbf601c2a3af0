"""A worker process seen from the harness: start it, ask it, and survive whatever happens to it."""

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
    """It took too long, and was ended."""


def _meaning(status: int) -> str:
    """What a signal says about a process that died."""
    if status == -9:
        return " (killed from outside, as Linux does when memory runs out)"
    return f" ({signal.Signals(-status).name})" if status < 0 else ""


class _Guard:
    """Ends a worker, and all that it started, when this process ends in whatever way: in a long call a worker notices nothing
    itself. A shell waits on a pipe whose other end this process alone has.

    worker: the number of a process that leads a group of its own.
    """

    def __init__(self, worker: int):
        self._process: subprocess.Popen | None = None
        if shutil.which("sh") is None:  # Windows
            return
        self._process = subprocess.Popen(
            ["sh", "-c", 'read -r _; kill -s KILL -- "-$0"', str(worker)],  # dash takes no -KILL before a group
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """The worker's end is in our hands again. Called before it is waited for: afterwards its number may be another's."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class WorkerProcess:
    """One row's process. Thread counts of numerical libraries are set before it starts."""

    def __init__(self, threads: int, scratch: Path | None = None):
        count = str(threads)
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), count
        )
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        environment |= isolated(environment)
        if scratch is not None:  # what a process that is killed leaves behind goes with the run
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
            start_new_session=True,  # Ctrl-C is the harness's business: rows measured so far are kept
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
        """The process's number."""
        return self._process.pid

    def ask(self, do: str, timeout: float, limit: float, **arguments: Any) -> Any:
        """Run one command of the worker, for `timeout` seconds at most: what is left of its row's `limit`.

        Raises:
            WorkerFailed: with the worker's error, its exit status and last words, or the time limit.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.close(kill=True)
            raise WorkerLate(f"no answer to {do!r}: the row took longer than its {limit:g} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise WorkerFailed(f"the process ended with status {status}{_meaning(status)}: {self.last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            self.close(kill=True)
            raise WorkerFailed(f"the process answered {line[:100]!r}: something wrote into its answers") from None
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer["ok"]

    def last_words(self) -> str:
        """The end of what the process printed."""
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"

    def close(self, *, kill: bool = False) -> None:
        """End the process."""
        self._guard.release()
        if kill:
            self._kill()
        elif self._process.stdin is not None:
            with contextlib.suppress(OSError):  # a process that died leaves a broken pipe to flush into
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        """The process, and those that it started: a browser, for one."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        self._process.kill()
