"""Kills and races of the command line: whatever is killed whenever, and whichever two run at once, no output is ever half.

    python tests/fuzz/crashes.py --kills 200 --races 50 --seed 0

Every trial has a folder, a cache and a folder of temporary files of its own; those of a trial that failed are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MODEL = Path(__file__).parents[2] / "models" / "stdlib-5m"
RUN = [sys.executable, "-P", "-m", "edgeformer"]
MARK = "EDGEFORMER_CRASHES"  # a variable by which all that a trial started is found
SIGNALS = [signal.SIGKILL] * 5 + [signal.SIGTERM] * 2 + [signal.SIGINT] * 2 + [signal.SIGHUP]
LIMIT_S, END_S = 300, 3
NOTES = "notes"  # a folder that is no artefact
MEASURE = "--rounds 2 --prompt 16 --threads 1 --no-twin"
LINES = {
    **{f"export {to}": f"export MODEL -o out --to {to}" for to in ("onnx", "mlx", "gguf", "hf")},
    "quantize": "quantize MODEL -o out",
    "quantize force": "quantize MODEL -o out --force",
    "compare": f"compare MODEL {MEASURE} --gen 8 --no-roofline --runtimes onnxruntime,numpy --json rows.jsonl",
    "bench": f"bench ARTEFACT {MEASURE} --gen 8 --runtimes onnxruntime --json rows.jsonl",
    "quantize q8": "quantize MODEL -o out --format q8",
    "compare 4": f"compare MODEL {MEASURE} --gen 4 --no-roofline --runtimes onnxruntime,numpy --json rows.jsonl",
    "bench 4": f"bench ARTEFACT {MEASURE} --gen 4 --no-roofline --runtimes onnxruntime --json rows.jsonl",
    "clean": "cache --clean",
}
PAIRS = [
    "export onnx|export onnx", "export onnx|export hf", "export gguf|export mlx", "quantize|quantize", "quantize|quantize q8",
    "quantize|export onnx", "bench|bench", "bench|bench 4", "compare|compare", "compare|compare 4", "compare|clean",
]  # fmt: skip
PACKAGES = {"export mlx": "mlx", "export gguf": "gguf"}


class Wrong(Exception):
    """Something that was promised is not so."""


@dataclass
class Command:
    """A command line; undisturbed: the seconds it takes, the files that it makes, and the records of one run."""

    line: list[str]
    wall_s: float = 0.0
    makes: dict[str, str] = field(default_factory=dict)
    rows: bytes = b""

    @property
    def measures(self) -> bool:
        """Whether it appends records, and makes artefacts in the cache only."""
        return "--json" in self.line


def hashes(folder: Path, *, times: bool = False) -> dict[str, str]:
    """Path below a folder -> what lies there; empty if there is no folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = "a folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = what + (f" {path.stat().st_mtime_ns}" if times else "")
    return found


class Place:
    """The folder of one trial."""

    def __init__(self, root: Path, name: str):
        self.root, self.token, self.started = root / name, f"{os.getpid()} {name}", 0
        self.work, self.cache, self.tmp = (self.root / part for part in ("work", "cache", "tmp"))
        for folder in (self.work, self.cache, self.tmp):
            folder.mkdir(parents=True)
        self.out, self.rows = self.work / "out", self.work / "rows.jsonl"
        (self.work / "bystander").write_text("of the user\n")

    def start(self, line: list[str]) -> subprocess.Popen:
        """A command in a session of its own; what it prints goes to a file."""
        self.started += 1
        settings = {"EDGEFORMER_CACHE": str(self.cache), "TMPDIR": str(self.tmp), MARK: self.token, "COLUMNS": "500"}
        with self._log(self.started).open("wb") as log:
            return subprocess.Popen(
                [*RUN, *line],
                cwd=self.work,
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def _log(self, number: int) -> Path:
        return self.root / f"stderr{number}"

    def said(self, number: int) -> str:
        """What the command of that number printed to stderr."""
        return self._log(number).read_text(errors="replace")

    def run(self, line: list[str]) -> float:
        """A command that has to succeed; how long it took."""
        began = time.monotonic()
        if (code := self.start(line).wait(LIMIT_S)) != 0:
            raise Wrong(f"{line[0]} ended with {code}: {self.said(self.started)[-600:]}")
        return time.monotonic() - began

    def names(self) -> set[Path]:
        """What lies directly in the folders that a command writes to."""
        folders = (self.work, self.tmp, self.cache, self.cache / "artefacts", self.cache / "runs")
        return {path for folder in folders for path in folder.glob("*")}

    def makes(self, command: Command) -> dict[str, str]:
        """What a command has made so far."""
        return hashes(self.cache / "artefacts" if command.measures else self.out)

    def runs(self) -> Counter:
        """Run id -> its records in the file; every line has to be whole."""
        text = self.rows.read_bytes() if self.rows.exists() else b""
        try:
            found = Counter(json.loads(line)["run_id"] for line in text.splitlines())
        except (ValueError, KeyError) as e:
            raise Wrong(f"a line of the records is not whole: {e}") from e
        if text and not text.endswith(b"\n"):
            raise Wrong("the last line of the records is not whole")
        return found

    def check_nothing_left(self, names: set[str]) -> None:
        """Only these lie in the working folder, nothing among temporary files, no unfinished run, and no lock is held."""
        left = {path.name for path in self.work.iterdir()} ^ (names | {"bystander"})
        left |= {f"tmp/{path.name}" for path in self.tmp.iterdir()}
        left |= {f"runs/{path.name}" for path in (self.cache / "runs").glob("*")}
        if left:
            raise Wrong(f"left behind, or gone: {sorted(left)}")
        for path in [self.work, self.out, *self.cache.rglob("*.lock")]:
            if path.exists():
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Wrong(f"{path} is still locked") from None
                finally:
                    os.close(handle)

    def check_ended(self, children: list[psutil.Process]) -> None:
        """Nothing that the trial started is alive, in a few seconds at the latest."""
        until, mark = time.monotonic() + END_S, f"{MARK}={self.token}\0".encode()
        while True:
            alive = [str(child) for child in children if child.is_running() and not _zombie(child)]
            for file in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    if mark in file.read_bytes():
                        alive.append((file.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            if not alive:
                return
            if time.monotonic() > until:
                raise Wrong(f"still alive after {END_S} s: {alive}")
            time.sleep(0.05)


def _zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


class Trials:
    """All trials of a seed, and what became of them."""

    def __init__(self, root: Path, seed: int):
        self.root, self.seed, self.failures, self.told = root, seed, [], {}
        shutil.copytree(MODEL, root / "sources" / "model")
        places = {"MODEL": str(root / "sources" / "model"), "ARTEFACT": str(root / "sources" / "artefact")}
        self.commands = {
            name: Command([places.get(word, word) for word in line.split()])
            for name, line in LINES.items()
            if importlib.util.find_spec(PACKAGES.get(name, "edgeformer"))
        }
        for name, command in self.commands.items():
            self._undisturbed(name, command)
        self.sources = hashes(root / "sources", times=True)
        writers = [name for name in self.commands if name.startswith(("export", "quantize"))]
        plain = [name for name in writers if name not in ("quantize force", "quantize q8")]
        self.killed = [(name, "") for name in plain] + [("quantize force", NOTES), ("compare", ""), ("bench", "")]
        self.killed += [(name, plain[i - 1]) for i, name in enumerate(plain)]  # over what another one made
        self.pairs = [pair for text in PAIRS if {*(pair := text.split("|"))} <= self.commands.keys()]

    def _undisturbed(self, name: str, command: Command) -> None:
        """Twice: both give the same."""
        for again in ("", " again"):
            place = Place(self.root, f"undisturbed {name}{again}")
            if name == "quantize force":
                self._before(place, NOTES)
            command.wall_s = min(place.run(command.line), command.wall_s or LIMIT_S)
            if again and place.makes(command) != command.makes:
                raise Wrong(f"{name} doesn't make the same twice")
            command.makes, command.rows = place.makes(command), place.rows.read_bytes() if command.measures else b""
        print(f"{name}: {command.wall_s:.1f} s undisturbed, {len(command.makes)} files", flush=True)
        if name == "export onnx":
            shutil.copytree(place.out, self.root / "sources" / "artefact")

    def _before(self, place: Place, before: str) -> dict[str, str]:
        """Put there what OUTPUT is at first."""
        if before == NOTES:
            place.out.mkdir()
            (place.out / "notes.txt").write_text("of an earlier year\n")
        elif before:
            shutil.copytree(self.root / f"undisturbed {before}" / "work" / "out", place.out)
        return hashes(place.out)

    def attempt(self, kind: str, number: int) -> None:
        """One trial. What is wrong is a failure; the others go on."""
        place = Place(self.root, f"{kind} {number}")
        dice = random.Random(f"{self.seed} {kind} {number}")
        trial: Callable = self.kill if kind == "kills" else self.race
        try:
            told = trial(number, place, dice)
            if hashes(self.root / "sources", times=True) != self.sources:
                raise Wrong("a file of the MODEL was touched")
            shutil.rmtree(place.root)
        except (Wrong, OSError, subprocess.TimeoutExpired) as e:
            told = f"FAILED: {e}"
            self.failures.append(f"--seed {self.seed}, {kind} {number}, kept in {place.root}: {e}")
        print(f"{kind} {number}: {self.now} | {told}", flush=True)

    def kill(self, number: int, place: Place, dice: random.Random) -> str:
        """Kill a command at some moment; half of the time at one after it has begun to write. Then run it again."""
        (name, over), how = self.killed[number % len(self.killed)], dice.choice(SIGNALS)
        command, counts = self.commands[name], self.told.setdefault(name + (f" over {over}" if over else ""), Counter())
        self.now = f"{name} over {over or 'nothing'}, {how.name}"
        before = self._before(place, over)
        place.rows.write_bytes(command.rows) if command.measures else None
        old, seen, began = place.runs(), place.names(), time.monotonic()
        process = place.start(command.line)
        if dice.random() < 0.5:
            while place.names() == seen and process.poll() is None:
                time.sleep(0.001)
            wait = dice.uniform(0, max(0.1, command.wall_s - (time.monotonic() - began)))
        else:
            wait = dice.uniform(0, command.wall_s)
        children: list[psutil.Process] = []
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
        at = time.monotonic()
        counts["late" if process.poll() is not None else how.name] += 1
        process.send_signal(how)
        code, took = process.wait(60), time.monotonic() - at
        counts[f"code {code}"] += 1
        counts["slowest end ms"] = max(counts["slowest end ms"], round(took * 1e3))
        counts["traceback"] += "Traceback" in place.said(1)
        place.check_ended(children)
        state = self._state(place, command, before, old)
        counts[state] += 1
        if code == 0 and state != "new":
            raise Wrong(f"it ended well, and what is there is {state}")
        names = {path.name for path in place.work.iterdir()} - {"bystander", "out", "rows.jsonl"}
        counts["left"] += bool(names)
        for path in place.names():
            if path.name.endswith(".new"):  # these are deleted when they are a minute old
                os.utime(path, (time.time() - 120,) * 2)
        journals = [text.read_bytes() for text in (place.cache / "runs").glob("*.jsonl")]
        resume = any(text.startswith(b'{"event": "run"') and b"\n" in text for text in journals) and dice.random() < 0.5
        counts["resumed"] += resume
        place.run([*command.line, "--resume"] if resume else command.line)
        if self._state(place, command, before, old, again=True) != "new":
            raise Wrong("the next run didn't make it whole")
        place.check_ended([])
        place.check_nothing_left({"rows.jsonl"} if command.measures else {"out"})
        if command.measures:
            place.run(["report", "rows.jsonl", "-o", "report.md"])
        return f"after {at - began:.2f} of {command.wall_s:.2f} s: code {code}, {state}, left {sorted(names)}" + (
            ", resumed" if resume else ""
        )

    def _state(self, place: Place, command: Command, before: dict, old: Counter, *, again: bool = False) -> str:
        """What OUTPUT is: absent, old or new; for a measurement, whether the file has records of a new run."""
        made, whole = place.makes(command), len(command.rows.splitlines())
        if command.measures:
            runs = place.runs()
            if old - runs or any(count != whole for count in runs.values()):
                raise Wrong(f"records of half a run: {runs}, before {old}")
            if again and made != command.makes:
                raise Wrong(f"the artefacts in the cache are not what they should be: {made}")
            return "new" if len(runs) > len(old) else "old"
        if made == command.makes:
            return "new"
        if place.out.exists():
            if made == before:
                return "old"
            raise Wrong(f"OUTPUT is half: {made}")
        if before and not (place.work / ".out.replacing").exists():
            raise Wrong("OUTPUT is gone, without a journal")
        return "absent"

    def race(self, number: int, place: Place, dice: random.Random) -> str:
        """Start two commands within a second."""
        pair = self.pairs[number % len(self.pairs)]
        commands, counts = [self.commands[name] for name in pair], self.told.setdefault(" | ".join(pair), Counter())
        if dice.random() < 0.5:
            commands.reverse()
        measures, cleaned = any(c.measures for c in commands), "clean" in pair
        over = "" if measures else dice.choice(["", "export hf"])
        offset = dice.uniform(0, self.commands["compare"].wall_s if cleaned else 1)
        self.now = f"{' | '.join(pair)} over {over or 'nothing'}, {offset:.2f} s apart"
        self._before(place, over)
        first = place.start(commands[0].line)
        time.sleep(offset)
        codes = [process.wait(LIMIT_S) for process in (place.start(commands[1].line), first)][::-1]
        counts["trials"] += 1
        for i, code in enumerate(codes):
            said = place.said(i + 1).strip().splitlines() or [""]
            errors = [line for line in said if line.startswith("error: ")]
            if code and (code != 2 or len(errors) != 1 or "Traceback" in place.said(i + 1) or said[-1] != errors[0]):
                raise Wrong(f"the loser ended with {code}: {place.said(i + 1)[-1500:]}")
            counts["won" if not code else errors[0].replace(str(place.work), "")[:130]] += 1
        won = [command for command, code in zip(commands, codes, strict=True) if code == 0]
        if not won or (cleaned and len(won) < 2):
            raise Wrong(f"not enough of them ended well: {codes}: {place.said(1)[-400:]} | {place.said(2)[-400:]}")
        place.check_ended([])
        if measures:
            runs, wanted = place.runs(), sorted(len(c.rows.splitlines()) for c in won if c.measures)
            if sorted(runs.values()) != wanted:
                raise Wrong(f"records of {runs}, of runs that ended well {wanted}")
        if place.makes(commands[0] if commands[0].measures else commands[1]) not in [
            *(c.makes for c in won), *([{}] if cleaned else [])
        ]:  # fmt: skip
            raise Wrong("what was made is none of theirs")
        place.check_nothing_left({"rows.jsonl"} if measures else {"out"})
        return f"codes {codes}"


def main() -> int:
    """Run the trials; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 200), ("races", 50), ("seed", 0), ("first", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=["kills", "races"])
    given = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background of a shell it is ignored, also by children
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    root, began = Path(tempfile.mkdtemp(prefix="crashes-")), time.monotonic()
    trials = Trials(root, given.seed)
    for kind in ("kills", "races") if given.only is None else (given.only,):
        for number in range(given.first, given.first + getattr(given, kind)):
            trials.attempt(kind, number)
    print(f"\n{time.monotonic() - began:.0f} s; of what was killed or raced: how often, and what became of it")
    for name, counts in trials.told.items():
        print(f"{name:<28} {', '.join(f'{what} {count}' for what, count in sorted(counts.items()) if count)}")
    print(f"{len(trials.failures)} failures")
    for failure in trials.failures:
        print(f"  {failure}")
    if not trials.failures:
        shutil.rmtree(root)
    return 1 if trials.failures else 0


if __name__ == "__main__":
    sys.exit(main())
