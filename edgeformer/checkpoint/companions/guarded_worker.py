"""The process that runs programs from a model's folder: `python -P -m edgeformer....guarded_worker MEGABYTES`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.companions.guarded import receive, send

_opened: dict[str, Any] = {}


def _render(template: str, messages: list[dict[str, Any]], named: dict[str, str], add_generation_prompt: bool) -> str:
    from edgeformer.checkpoint.companions.chat import render_here

    return render_here(template, messages, named, add_generation_prompt)


def _open(folder: str) -> dict[str, str]:
    from edgeformer.checkpoint.companions.tokenizer import read_fast

    made = read_fast(Path(folder))
    _opened["tokenizer"] = made
    _limit(_taken() + 256 * 2**20)  # from now on it needs memory only for texts and their tokens
    return made.named


CALLS: dict[str, Callable[..., Any]] = {
    "render": _render,
    "open": _open,
    "encode": lambda text, special: _opened["tokenizer"].encode(text, special=special),
    "decode": lambda ids, special: _opened["tokenizer"].decode(ids, special=special),
    "id_of": lambda token: _opened["tokenizer"].id_of(token),
    "special": lambda: _opened["tokenizer"].special(),
    "to_json": lambda: _opened["tokenizer"].to_json(),
}


def _limit(size: int) -> None:
    """Limit the address space of this process, in bytes."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _taken() -> int:
    """Bytes of address space that this process has; a gigabyte where /proc doesn't tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 2**30


def main() -> None:
    """Answer calls until the parent is gone."""
    answers, calls = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    _limit(int(sys.argv[1]) * 2**20)
    alarm = getattr(signal, "setitimer", None)
    while (call := receive(calls)) is not None:
        if alarm is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # also ends a loop inside a library
            alarm(signal.ITIMER_REAL, call["seconds"])
        try:
            answer = {"ok": CALLS[call["do"]](**call["with"])}
        except MemoryError:
            answer = {"limit": "it exceeded its memory limit"}
        except BaseException as e:  # includes Rust panics
            text = str(e)
            answer = {"error": text if len(text) < 1000 else text[:1000] + "..."}
        if alarm is not None:
            alarm(signal.ITIMER_REAL, 0)
        send(answers, answer)


if __name__ == "__main__":
    main()
