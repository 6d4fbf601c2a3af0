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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
COLUMNS = [
    "ended before",
    "absent",
    "old",
    "new",
    "partials left",
    "slowest end ms",
    "tracebacks",
    "resumed",
    "trials",
    "won",
]
STRANGERS = {".ses"}  # of ONNX Runtime's own
PACKAGES = {"export mlx": "mlx", "export gguf": "gguf"}


class Wrong(Exception):
    """Something that was promised is not so."""


@dataclass
class Command:
    """A command line; undisturbed: the seconds it takes, the files that it makes, and the records of one run."""

    line: list[str]
    wall_s: float = LIMIT_S
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
        self.root, self.mark, self.said = root / name, f"{os.getpid()} {name}", []
        self.work, self.cache, self.tmp = (self.root / part for part in ("work", "cache", "tmp"))
        for folder in (self.work, self.cache, self.tmp):
            folder.mkdir(parents=True)
        self.out, self.rows = self.work / "out", self.work / "rows.jsonl"
        (self.work / "bystander").write_text("of the user\n")

    def start(self, line: list[str]) -> subprocess.Popen:
        """A command in a session of its own; what it prints to stderr goes to a file."""
        own = {"EDGEFORMER_CACHE": str(self.cache), "TMPDIR": str(self.tmp), MARK: self.mark}
        self.said.append(self.root / f"stderr{len(self.said)}")
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
        with self.said[-1].open("wb") as log:
            return subprocess.Popen([*RUN, *line], cwd=self.work, env=os.environ | own, stderr=log, **quiet)

    def run(self, line: list[str]) -> float:
        """A command that has to succeed; how long it took."""
        began = time.monotonic()
        if (code := self.start(line).wait(LIMIT_S)) != 0:
            raise Wrong(f"{line[0]} ended with {code}: {self.said[-1].read_text()[-600:]}")
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

    def check_nothing_left(self, name: str) -> None:
        """Only this lies in the working folder, nothing among temporary files, no unfinished run, and no lock is held."""
        left = {path.name for path in self.work.iterdir()} ^ {name, "bystander"}
        left |= {f"tmp/{path.name}" for path in self.tmp.iterdir() if path.name not in STRANGERS}
        left |= {f"runs/{path.name}" for path in (self.cache / "runs").glob("*")}
        if left:
            raise Wrong(f"left behind, or gone: {sorted(left)}")
        for path in filter(Path.exists, [self.work, self.out, *self.cache.rglob("*.lock")]):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Wrong(f"{path} is still locked") from None
            finally:
                os.close(handle)

    def check_ended(self, children: list[psutil.Process]) -> None:
        """Nothing that the trial started is alive, in a few seconds at the latest."""
        until, mark = time.monotonic() + END_S, f"{MARK}={self.mark}\0".encode()
        while True:
            alive = [str(child) for child in children if child.is_running() and not _zombie(child)]
            for file in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    if mark in file.read_bytes():
                        alive.append((file.parent / "cmdline").read_text().replace("\0", " ")[:200])
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
        self.root, self.seed, self.now = root, seed, ""
        self.failures: list[str] = []
        self.counts: dict[str, Counter] = {}
        shutil.copytree(MODEL, root / "sources" / "model")
        places = {"MODEL": str(root / "sources" / "model"), "ARTEFACT": str(root / "sources" / "artefact")}
        self.commands: dict[str, Command] = {}
        for name, line in LINES.items():
            if importlib.util.find_spec(PACKAGES.get(name, "edgeformer")):
                self.commands[name] = self._undisturbed(name, Command([places.get(w, w) for w in line.split()]))
        self.sources = hashes(root / "sources", times=True)
        writers = [name for name in self.commands if name.startswith("export") or name == "quantize"]
        self.killed = [(name, "") for name in [*writers, "compare", "bench"]] + [("quantize force", NOTES)]
        self.killed += [(name, writers[i - 1]) for i, name in enumerate(writers)]  # over what another one made
        self.pairs = [pair for text in PAIRS if {*(pair := text.split("|"))} <= self.commands.keys()]

    def _undisturbed(self, name: str, command: Command) -> Command:
        """Twice: both make the same."""
        for again in ("", " again"):
            place = Place(self.root, f"undisturbed {name}{again}")
            self._before(place, NOTES if name == "quantize force" else "")
            command.wall_s = min(place.run(command.line), command.wall_s)
            if again and place.makes(command) != command.makes:
                raise Wrong(f"{name} doesn't make the same twice")
            command.makes, command.rows = place.makes(command), place.rows.read_bytes() if command.measures else b""
        print(f"{name}: {command.wall_s:.1f} s undisturbed, {len(command.makes)} files", flush=True)
        if name == "export onnx":
            shutil.copytree(place.out, self.root / "sources" / "artefact")
        return command

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
        place, dice = Place(self.root, f"{kind} {number}"), random.Random(f"{self.seed} {kind} {number}")
        try:
            (self.kill if kind == "kills" else self.race)(number, place, dice)
            if hashes(self.root / "sources", times=True) != self.sources:
                raise Wrong("a file of the MODEL was touched")
            shutil.rmtree(place.root)
        except (Wrong, OSError, subprocess.TimeoutExpired) as e:
            self.failures.append(f"--seed {self.seed}, {kind} {number}: {self.now}: {e}; kept in {place.root}")
            self.now += f": FAILED: {e}"
        print(f"{kind} {number}: {self.now}", flush=True)

    def kill(self, number: int, place: Place, dice: random.Random) -> None:
        """Kill a command at some moment; half of the time at one after it has begun to write. Then run it again."""
        (name, over), how, code = self.killed[number % len(self.killed)], dice.choice(SIGNALS), None
        command, counts = (
            self.commands[name],
            self.counts.setdefault(f"{name} over {over}" if over else name, Counter()),
        )
        before = self._before(place, over)
        if command.measures:
            place.rows.write_bytes(command.rows)
        old, seen, began = place.runs(), place.names(), time.monotonic()
        process = place.start(command.line)
        writing = dice.random() < 0.5
        while writing and place.names() == seen and process.poll() is None:
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(dice.uniform(0, max(0.1, command.wall_s - (time.monotonic() - began))))
        children = psutil.Process(process.pid).children(recursive=True) if code is None else []
        at = time.monotonic()
        process.send_signal(how)
        counts["ended before" if code is not None else how.name] += 1
        self.now = f"{name} over {over or 'nothing'}, {how.name} after {at - began:.2f} of {command.wall_s:.2f} s"
        code = process.wait(60)
        counts["slowest end ms"] = max(counts["slowest end ms"], round((time.monotonic() - at) * 1e3))
        counts["tracebacks"] += "Traceback" in place.said[0].read_text()
        self.now += f": code {code}"
        place.check_ended(children)
        state = self._state(place, command, before, old)
        counts[state] += 1
        left = sorted(path.name for path in place.work.glob(".*"))
        counts["partials left"] += bool(left)
        self.now += f", {state}, left {left}"
        if code == 0 and state != "new":
            raise Wrong("it ended well, but wrote nothing")
        for path in place.names():
            if path.name.endswith(".new"):  # these are deleted when they are a minute old
                os.utime(path, (time.time() - 120,) * 2)
        starts = [file.read_text().partition("\n") for file in (place.cache / "runs").glob("*.jsonl")]
        resume = bool(starts and starts[0][1]) and dice.random() < 0.5
        counts["resumed"] += resume
        place.run([*command.line, *["--resume"] * resume])
        if self._state(place, command, before, old, again=True) != "new":
            raise Wrong("the next run didn't make it whole")
        place.check_ended([])
        place.check_nothing_left("rows.jsonl" if command.measures else "out")
        if command.measures:
            place.run(["report", "rows.jsonl", "-o", "report.md"])

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

    def race(self, number: int, place: Place, dice: random.Random) -> None:
        """Start two commands within a second, of which one cleans the cache at any moment of the other."""
        pair = dice.sample(names := self.pairs[number % len(self.pairs)], 2)
        commands, counts = [self.commands[name] for name in pair], self.counts.setdefault(" | ".join(names), Counter())
        measures, cleaned = any(c.measures for c in commands), "clean" in pair
        over = "" if measures else dice.choice(["", "export hf"])
        offset = dice.uniform(0, self.commands["compare"].wall_s if pair[1] == "clean" else 1)
        self.now = f"{' | '.join(pair)} over {over or 'nothing'}, {offset:.2f} s apart"
        self._before(place, over)
        first = place.start(commands[0].line)
        time.sleep(offset)
        second = place.start(commands[1].line)
        codes = [first.wait(LIMIT_S), second.wait(LIMIT_S)]
        self.now += f": codes {codes}"
        counts["trials"] += 1
        for code, said in zip(codes, (file.read_text() for file in place.said), strict=True):
            lines = said.strip().splitlines() or [""]
            errors = [line for line in lines if line.startswith("error: ")]
            if code and (code != 2 or errors != lines[-1:] or "Traceback" in said):
                raise Wrong(f"the loser ended with {code}: {said[-1500:]}")
            counts[errors[0].replace(str(place.work), "")[:130] if code else "won"] += 1
        won = [command for command, code in zip(commands, codes, strict=True) if code == 0]
        if len(won) < 1 + cleaned:
            raise Wrong("not enough of them ended well")
        place.check_ended([])
        runs, wanted = place.runs(), sorted(len(c.rows.splitlines()) for c in won if c.measures)
        if sorted(runs.values()) != wanted:
            raise Wrong(f"records of {runs}, of runs that ended well {wanted}")
        if place.makes(next((c for c in won if c.measures), won[0])) not in [c.makes for c in won]:
            raise Wrong("what was made is none of theirs")
        place.check_nothing_left("rows.jsonl" if measures else "out")


def table(counts: dict[str, Counter]) -> None:
    """Print how often what happened, a row for each command; what two that ran at once said, below."""
    columns = [*dict.fromkeys(s.name for s in SIGNALS), *COLUMNS]
    print(" " * 28, " ".join(columns))
    for name, found in counts.items():
        print(f"{name:<28}", " ".join(f"{found[column]:>{len(column)}}" for column in columns))
    for name, found in counts.items():
        for text in sorted(found.keys() - {*columns}):
            print(f"  {name}: {found[text]} x {text}")


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
    print(f"\nin {time.monotonic() - began:.0f} s")
    table(trials.counts)
    print(f"{len(trials.failures)} failures")
    for failure in trials.failures:
        print(f"  {failure}")
    if not trials.failures:
        shutil.rmtree(root)
    return 1 if trials.failures else 0


if __name__ == "__main__":
    sys.exit(main())
