"""One command of edgeformer in a process forked off this one, with limits, and what is wrong with how it ended."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS, MEGABYTES, MOST = 40.0, 300, 1500
"""After which a command hangs; above what it starts with, what refusing a file may take, and what any of these models may."""
CODES = (0, 1, 2)


@dataclass(frozen=True)
class Ended:
    """How a command ended. memory: bytes above what it started with; seconds: wall time."""

    code: int
    out: bytes
    err: bytes
    memory: int
    seconds: float
    wrong: str | None


def preload() -> None:
    """Import what commands import, once."""
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401
    import onnx  # noqa: F401
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401
    import rich.table  # noqa: F401
    import tokenizers  # noqa: F401

    with contextlib.suppress(ImportError):
        import torch  # noqa: F401
        import transformers  # noqa: F401

    import edgeformer.api
    import edgeformer.cli
    import edgeformer.measure.comparison  # noqa: F401


def run(arguments: list[str], work: Path, watched: Path) -> Ended:
    """Run a command with `work` as current folder, home, cache and place for temporary files.

    watched: a folder that it must not change.
    """
    for name in ("cache", "tmp", "home"):
        (work / name).mkdir(exist_ok=True)
    before, start = state(watched), time.perf_counter()
    outside = names(work) - {"o", "o.html", "o.json"}
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = work / "stdout", work / "stderr"
    child = os.fork()
    if child == 0:
        _become(arguments, work, out, err)
    status, usage, late = _wait(child)
    seconds = time.perf_counter() - start
    with_group = _kill_group(child)
    said, remarks = out.read_bytes(), err.read_bytes()
    out.unlink()
    err.unlink()
    code = -status if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    memory = max(usage.ru_maxrss - base, 0) * 1024
    wrong = None
    if late:
        wrong = f"no end after {SECONDS:g} s"
    elif code not in CODES:
        wrong = f"exit code {code}"
    elif b"Traceback" in remarks or b"panicked" in remarks or b"Traceback" in said:
        wrong = "a traceback"
    elif code == 2 and sum(line.startswith((b"error: ", b"Error: ")) for line in remarks.split(b"\n")) != 1:
        wrong = "not one error"
    elif b"\x1b" in remarks or b"\x1b" in said:
        wrong = "an escape sequence"
    elif len(remarks) > 20_000 or max(map(len, remarks.split(b"\n"))) > 6000:
        wrong = f"{len(remarks)} bytes of messages"
    elif memory > (MEGABYTES if code == 2 else MOST) * 2**20:
        wrong = f"{memory >> 20} MB"
    elif state(watched) != before:
        wrong = "it changed its input"
    elif (left := names(work) - outside - {"o", "o.html", "o.json", "cache", "tmp", "home"}) or (
        left := {n for d in ("tmp", "home") for n in names(work / d)}
        - {n for n in names(work / "tmp") if n.startswith(("torchinductor_", "mlx"))}
    ):
        wrong = f"it left {sorted(left)}"
    elif with_group:
        wrong = "a process of it lived on"
    for file in (work / "cache" / "crashes").glob("*.txt"):
        remarks += b"\n".join(file.read_bytes().split(b"\n")[-9:])
    for name in ("cache", "tmp", "home", "o"):
        shutil.rmtree(work / name, ignore_errors=True)
    return Ended(code, said, remarks, memory, seconds, wrong)


def names(folder: Path) -> set[str]:
    """What a folder holds."""
    return {file.name for file in folder.iterdir()}


def state(folder: Path) -> str:
    """A digest of all names and contents below a folder."""
    h = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        h.update(str(file.relative_to(folder)).encode("utf-8", "surrogateescape"))
        if file.is_file() and not file.is_symlink():
            h.update(file.read_bytes())
    return h.hexdigest()


def _become(arguments: list[str], work: Path, out: Path, err: Path) -> None:
    """Be the command, in the forked process; it doesn't return."""
    code = 99
    atexit._clear()  # what this process does at its end is not the command's
    try:
        os.setsid()
        os.chdir(work)
        places = {"HOME": "home", "TMPDIR": "tmp", "EDGEFORMER_CACHE": "cache"}
        os.environ |= {name: str(work / folder) for name, folder in places.items()}
        os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "80", "RUST_BACKTRACE": "0"}
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["edgeformer", *arguments]
        import tempfile

        tempfile.tempdir = None
        from edgeformer.cli import main

        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    end, pause = time.monotonic() + SECONDS, 0.002
    while time.monotonic() < end:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage, True


def _kill_group(leader: int) -> bool:
    """End what a command left running; whether there was anything."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
