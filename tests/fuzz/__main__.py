"""Damaged files in every command: `python tests/fuzz [--seconds 150] [--seed 0] [--only KIND]`.

Reports each case with its number, by which `--case N` runs it again; exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import readers
import sandbox
from corpus import Seed, build
from mutations import HOSTILE, damaged, encoded, mutated, text_of

SIDE_BY_SIDE = {"safetensors": 4000, "gguf": 1500, "onnx": 300}
"""Files compared with the official readers a minute, of a run of so many seconds."""


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="how long, in all")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", help="one kind of file")
    parser.add_argument("--case", type=int, help="run this case alone, and show what it prints")
    parser.add_argument(
        "--readers", type=int, metavar="N", help="only compare readers with the official ones, over N files each"
    )
    options = parser.parse_args()
    fast = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edgeformer-fuzz-", dir=fast) as name:
        folder = Path(name)
        sandbox.preload()
        if options.case is None:
            wrong = _side_by_side(folder, options)
            if options.readers is not None:
                return int(bool(wrong))
        else:
            wrong = 0
        wrong += _commands(folder, options)
    return int(bool(wrong))


def _side_by_side(folder: Path, options: argparse.Namespace) -> int:
    wrong = 0
    for name, rate in SIDE_BY_SIDE.items():
        count = options.readers or int(rate * min(options.seconds / 60, 60))
        if options.only not in (None, name):
            continue
        start = time.perf_counter()
        for case, what in readers.compare(name, options.seed, count, folder):
            print(f"reader {name} {case}: {what[:300]}")
            wrong += 1
        took, both = time.perf_counter() - start, readers.read[name]
        print(f"{name}: {count:,} files beside the official reader in {took:.0f} s, {both:,} read by both", flush=True)
    return wrong


def _commands(folder: Path, options: argparse.Namespace) -> int:
    seeds = [s for s in build(folder / "corpus") if options.only in (None, s.name)]
    start, counts, wrong = time.perf_counter(), collections.Counter(), 0
    codes: collections.Counter[int] = collections.Counter()
    times, memory, refused = [], [], []
    case = options.seed if options.case is None else options.case
    while time.perf_counter() - start < options.seconds or options.case is not None:
        command, ended = _one(folder, seeds, case)
        counts[command[0]] += 1
        codes[ended.code] += 1
        times.append(ended.seconds)
        memory.append(ended.memory)
        if ended.code == 2:
            refused.append(ended.memory)
        if ended.wrong is not None or options.case is not None:
            print(f"case {case}: edgeformer {' '.join(command)}: {ended.wrong}", flush=True)
            print(
                "   ",
                ended.err[-4000 if options.case is not None else -1200 :]
                .decode(errors="replace")
                .replace("\n", "\n    "),
            )
            wrong += ended.wrong is not None
        if options.case is not None:
            break
        case += 1
    print(f"{sum(counts.values()):,} commands in {time.perf_counter() - start:.0f} s: {dict(counts.most_common())}")
    print(
        f"exit codes {dict(codes)}; median {statistics.median(times):.2f} s, longest {max(times):.1f} s; {wrong} wrong"
    )
    print(
        f"memory above the start, at most {max(memory) >> 20} MB; of those refused {max(refused, default=0) >> 20} MB"
    )
    return wrong


def _one(folder: Path, seeds: list[Seed], case: int) -> tuple[list[str], sandbox.Ended]:
    chance = random.Random(case)
    seed = chance.choice(seeds)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    model = work / "in" / "model"
    shutil.copytree(seed.folder, model, copy_function=shutil.copy)
    for name in chance.sample(seed.files, k=chance.choice((1, 1, min(2, len(seed.files))))):
        damage(chance, model / name)
    text = chance.choice(seed.commands)
    places = {"{}": str(model), "{o}": str(work / "o"), "{m}": str(folder / "corpus" / "m")}
    command = [_filled(word, places) for word in text.split()]
    watched = work / "in" if "-o {} " not in text and "verify" not in text else folder / "corpus"
    return command, sandbox.run(command, work, watched)


def _filled(word: str, places: dict[str, str]) -> str:
    for mark, path in places.items():
        word = word.replace(mark, path)
    return word


def damage(chance: random.Random, file: Path) -> None:
    """Change a file as its kind allows: values of JSON, a header's values, or bytes."""
    data = file.read_bytes()
    if file.suffix in (".json", ".jsonl") and chance.random() < 0.85:
        lines = data.decode().splitlines() if file.suffix == ".jsonl" else [data.decode()]
        which = chance.randrange(len(lines))
        lines[which] = text_of(chance, mutated(chance, json.loads(lines[which])))
        file.write_bytes(encoded(chance, "\n".join(lines)))
    elif file.suffix == ".safetensors" and chance.random() < 0.6:
        length = int.from_bytes(data[:8], "little")
        header = encoded(chance, text_of(chance, mutated(chance, json.loads(data[8 : 8 + length]))))
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    elif file.suffix == ".jinja" and chance.random() < 0.7:
        strings = [h for h in HOSTILE if isinstance(h, str)]
        file.write_bytes(encoded(chance, data.decode() + chance.choice(strings)))
    elif chance.random() < 0.03:
        file.unlink()
        if chance.random() < 0.5:
            file.mkdir()
    else:
        file.write_bytes(damaged(chance, data))


if __name__ == "__main__":
    sys.exit(main())
