"""Kills and races of the command line: whatever is killed whenever, and whichever two run at once, no output is ever half.

    python tests/fuzz/crashes.py --kills 200 --races 50 --seed 0

Every trial has a folder, a cache and a folder of temporary files of its own; those of a trial that failed are kept.
"""

from __future__ import annotations

import argparse
import contextlib
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
LIMIT_S, END_S, NOTES = 300, 3, "notes"  # the last is a folder that is no artefact
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
SEEN = ["missed", "absent", "old", "new", "left", "ms to end", "tracebacks", "resumed", "won"]


class Wrong(Exception):
    """Something that was promised is not so."""


@dataclass
class Command:
    """A command line; undisturbed: the seconds it takes, the files that it makes, and the records of one run."""

    line: list[str]
    wall_s: float = LIMIT_S
    makes: dict[str, str] = field(default_factory=dict)
    rows: bytes = b""


def hashes(folder: Path, *, times: bool = False) -> dict[str, str]:
    """Path below a folder -> what lies there; empty if there is no folder."""
    found = {path: "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}
    return {str(p.relative_to(folder)): f"{x} {p.stat().st_mtime_ns if times else ''}" for p, x in found.items()}


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

    def run(self, line: list[str]) -> None:
        """A command that has to succeed."""
        if (code := self.start(line).wait(LIMIT_S)) != 0:
            raise Wrong(f"{line[0]} ended with {code}: {self.said[-1].read_text()[-600:]}")

    def names(self) -> set[Path]:
        """What lies directly in the folders that a command writes to."""
        folders = (self.work, self.tmp, self.cache, self.cache / "artefacts", self.cache / "runs")
        return {path for folder in folders for path in folder.glob("*")}

    def makes(self) -> dict[str, str]:
        """What commands have made so far: OUTPUT, and artefacts in the cache."""
        return ({"out": ""} if self.out.exists() else {}) | hashes(self.out) | hashes(self.cache / "artefacts")

    def runs(self) -> Counter:
        """Run id -> its records in the file; every line has to be whole."""
        text = self.rows.read_text() if self.rows.exists() else ""
        return Counter(json.loads(line)["run_id"] for line in text.splitlines())

    def check_nothing_left(self, name: str) -> None:
        """Only this lies in the working folder, nothing among temporary files, no unfinished run, no fault, no lock."""
        left = {path.name for path in self.work.iterdir()} ^ {name, "bystander"}
        left |= {f"tmp/{path.name}" for path in self.tmp.iterdir() if path.name != ".ses"}  # ONNX Runtime's
        left |= {f"{part}/{path.name}" for part in ("runs", "crashes") for path in (self.cache / part).glob("*")}
        for path in filter(Path.exists, [self.work, self.out, *self.cache.rglob("*.lock")]):
            left |= {f"a lock of {path}"} if subprocess.run(["flock", "--nonblock", path, "true"]).returncode else set()
        if left:
            raise Wrong(f"left behind, or gone: {sorted(left)}")

    def check_ended(self, children: list[psutil.Process]) -> None:
        """Nothing that the trial started is alive, in a few seconds at the latest."""
        until = time.monotonic() + END_S
        while alive := [
            each.info["cmdline"]
            for each in psutil.process_iter(["cmdline", "environ", "status"])
            if each in children or (each.info["environ"] or {}).get(MARK) == self.mark
            if each.info["status"] != psutil.STATUS_ZOMBIE
        ]:
            if time.monotonic() > until:
                raise Wrong(f"still alive after {END_S} s: {alive}")
            time.sleep(0.05)


class Trials:
    """All trials of a seed, and what became of them."""

    def __init__(self, root: Path, seed: int):
        self.root, self.seed, self.now, self.failures, self.counts = root, seed, "", [], {}
        shutil.copytree(MODEL, root / "sources" / "model")
        places = {"MODEL": str(root / "sources" / "model"), "ARTEFACT": str(root / "sources" / "artefact")}
        self.commands = {}
        for name, line in LINES.items():
            if name not in ("export mlx", "export gguf") or importlib.util.find_spec(name.split()[1]):
                self.commands[name] = self._undisturbed(name, Command([places.get(w, w) for w in line.split()]))
        self.sources = hashes(root / "sources", times=True)
        writers = [name for name in self.commands if name.startswith("export") or name == "quantize"]
        self.killed = [(name, "") for name in [*writers, "compare", "bench"]] + [("quantize force", NOTES)]
        self.killed += [(name, writers[i - 1]) for i, name in enumerate(writers)]  # over what another one made
        self.pairs = [pair for text in PAIRS if {*(pair := text.split("|"))} <= self.commands.keys()]

    def _undisturbed(self, name: str, command: Command) -> Command:
        """Twice: both make the same."""
        for again in ("", " again"):
            place, began = Place(self.root, f"undisturbed {name}{again}"), time.monotonic()
            self._before(place, NOTES if name == "quantize force" else "")
            place.run(command.line)
            command.wall_s, before = min(time.monotonic() - began, command.wall_s), command.makes
            command.makes, command.rows = place.makes(), place.rows.read_bytes() if place.rows.exists() else b""
            if again and before != command.makes:
                raise Wrong(f"{name} doesn't make the same twice")
        print(f"{name}: {command.wall_s:.1f} s undisturbed, {len(command.makes)} files", flush=True)
        if name == "export onnx":
            shutil.copytree(place.out, self.root / "sources" / "artefact")
        return command

    def _before(self, place: Place, before: str) -> dict[str, str]:
        """Put there what OUTPUT is at first."""
        if before:
            source = self.root / f"undisturbed {before}" / "work" / "out"
            shutil.copytree(source if before != NOTES else MODEL.parents[1] / "docs" / "decisions", place.out)
        return place.makes()

    def attempt(self, kind: str, number: int) -> None:
        """One trial. What is wrong is a failure; the others go on."""
        place, dice = Place(self.root, f"{kind} {number}"), random.Random(f"{self.seed} {kind} {number}")
        try:
            (self.kill if kind == "kills" else self.race)(number, place, dice)
            if hashes(self.root / "sources", times=True) != self.sources:
                raise Wrong("a file of the MODEL was touched")
            shutil.rmtree(place.root)
        except (Wrong, OSError, ValueError, LookupError, subprocess.TimeoutExpired) as e:
            self.now += f": FAILED, kept in {place.root}: {e}"
            self.failures.append(f"--seed {self.seed}, {kind} {number}: {self.now}")
        print(f"{kind} {number}: {self.now}", flush=True)

    def kill(self, number: int, place: Place, dice: random.Random) -> None:
        """Kill a command at some moment; half of the time at one after it has begun to write. Then run it again."""
        (name, over), how, code = self.killed[number % len(self.killed)], dice.choice(SIGNALS), None
        command, what = self.commands[name], f"{name} over {over}" if over else name
        counts, before = self.counts.setdefault(what, Counter()), self._before(place, over)
        if command.rows:
            place.rows.write_bytes(command.rows)
        old, seen, began = place.runs(), place.names(), time.monotonic()
        process = place.start(command.line)
        late = dice.random() < 0.5
        while late and place.names() == seen and process.poll() is None:
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(dice.uniform(0, max(0.1, command.wall_s - (time.monotonic() - began))))
        children = psutil.Process(process.pid).children(recursive=True) if code is None else []
        at = time.monotonic()
        process.send_signal(how)
        counts["missed" if code is not None else how.name] += 1
        self.now = f"{what}, {how.name} after {at - began:.2f} of {command.wall_s:.2f} s"
        code = process.wait(60)
        counts["ms to end"] = max(counts["ms to end"], round((time.monotonic() - at) * 1e3))
        counts["tracebacks"] += "Traceback" in place.said[0].read_text()
        self.now += f": code {code}"
        place.check_ended(children)
        state = self._state(place, command, before, old)
        counts[state] += 1
        counts["left"] += bool(left := sorted(path.name for path in place.work.glob(".*")))
        self.now += f", {state}, left {left}"
        if code == 0 and state != "new":
            raise Wrong("it ended well, but wrote nothing")
        for path in place.work.glob(".*.new"):  # these are deleted when they are a minute old
            os.utime(path, (time.time() - 120,) * 2)
        starts = [file.read_text().partition("\n")[1] for file in (place.cache / "runs").glob("*.jsonl")]
        counts["resumed"] += (resume := any(starts) and dice.random() < 0.5)
        place.run([*command.line, *["--resume"] * resume])
        if self._state(place, command, before, old) != "new" or place.makes() != command.makes:
            raise Wrong(f"the next run didn't make it whole: {place.makes()}")
        place.check_ended([])
        place.check_nothing_left("rows.jsonl" if command.rows else "out")
        if command.rows:
            place.run(["report", "rows.jsonl", "-o", "report.md"])

    def _state(self, place: Place, command: Command, before: dict, old: Counter) -> str:
        """What OUTPUT is: absent, old or new; for a measurement, whether the file has records of a new run."""
        made, runs, whole = place.makes(), place.runs(), command.rows.count(b"\n")
        if old - runs or any(count != whole for count in runs.values()):
            raise Wrong(f"records of half a run: {runs}, before {old}")
        if command.rows:
            return "new" if len(runs) > len(old) else "old"
        if made not in (command.makes, before, *[{}] * (place.work / ".out.replacing").exists()):
            raise Wrong(f"OUTPUT is half, or gone without a journal: {made}")
        return "new" if made == command.makes else "old" if made else "absent"

    def race(self, number: int, place: Place, dice: random.Random) -> None:
        """Start two commands within a second, of which one cleans the cache at any moment of the other."""
        pair = dice.sample(names := self.pairs[number % len(self.pairs)], 2)
        commands, counts = [self.commands[name] for name in pair], self.counts.setdefault(" | ".join(names), Counter())
        measures, cleaned = any(c.rows for c in commands), "clean" in pair
        over = "" if measures else dice.choice(["", "export hf"])
        offset = dice.uniform(0, self.commands["compare"].wall_s if pair[1] == "clean" else 1)
        self.now = f"{' | '.join(pair)} over {over or 'nothing'}, {offset:.2f} s apart"
        self._before(place, over)
        first = place.start(commands[0].line)
        time.sleep(offset)
        codes = [process.wait(LIMIT_S) for process in (place.start(commands[1].line), first)][::-1]
        self.now += f": codes {codes}"
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
        runs, wanted = place.runs(), sorted(c.rows.count(b"\n") for c in won if c.rows)
        if sorted(runs.values()) != wanted:
            raise Wrong(f"records of {runs}, of runs that ended well {wanted}")
        if place.makes() not in [c.makes for c in won]:
            raise Wrong("what was made is none of theirs")
        place.check_nothing_left("rows.jsonl" if measures else "out")


def main() -> int:
    """Run the trials; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"kills": 200, "races": 50, "seed": 0, "first": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=["kills", "races"])
    given = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGHUP):  # a shell's background, and nohup, ignore them, and so would children
        signal.signal(each, signal.SIG_DFL)
    root, began = Path(tempfile.mkdtemp(prefix="crashes-")), time.monotonic()
    trials = Trials(root, given.seed)
    for kind in ("kills", "races") if given.only is None else (given.only,):
        for number in range(given.first, given.first + getattr(given, kind)):
            trials.attempt(kind, number)
    known = [*dict.fromkeys(s.name for s in SIGNALS), *SEEN]
    print("\n" + " " * 28, *known)
    for name, seen in trials.counts.items():
        print(f"{name:<28}", *(f"{seen[column]:>{len(column)}}" for column in known))
    for name, seen in trials.counts.items():
        print(*(f"  {name}: {n} x {text}\n" for text, n in seen.items() if text not in known), sep="", end="")
    print(f"{time.monotonic() - began:.0f} s, {len(trials.failures)} failures", *trials.failures, sep="\n  ")
    if not trials.failures:
        shutil.rmtree(root)
    return int(bool(trials.failures))


if __name__ == "__main__":
    sys.exit(main())
