"""Our readers beside the official ones, over the same damaged files: what those refuse is refused, what both read is equal."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mutations import damaged, encoded, mutated, text_of

from edgeformer.errors import CheckpointError
from edgeformer.safetensors_file import read_header

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F64": 8}


def _safetensors(random: random.Random) -> bytes:
    """A small file, sound."""
    header: dict = {"__metadata__": {"format": "pt", "x": "y"}} if random.random() < 0.5 else {}
    at = 0
    for i in range(random.randrange(5)):
        dtype = random.choice(list(SIZES))
        shape = [random.randrange(4) for _ in range(random.randrange(4))]
        size = int(np.prod(shape, dtype=int)) * SIZES[dtype]
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if random.random() < 0.5:
        header = mutated(random, header)
    text = encoded(random, text_of(random, header)) + b" " * random.randrange(3)
    return struct.pack("<Q", len(text)) + text + random.randbytes(at)


def safetensors(random: random.Random, folder: Path) -> str | None:
    """One file; what is wrong with our reading of it, or None."""
    from safetensors import safe_open

    file = folder / "model.safetensors"
    data = _safetensors(random)
    if random.random() < 0.5:
        data = damaged(random, data, head=len(data))
    file.write_bytes(data)
    official: dict[str, bytes] | None = None
    try:
        with safe_open(str(file), framework="numpy") as f:
            official = {name: _bytes(f, name) for name in f.keys()}  # noqa: SIM118 a safe_open is no dict
    except Exception:
        pass
    try:
        ours = read_header(file)
    except CheckpointError as e:
        if official is None or _twice_or_listed(data) or len(str(e)) > 1000:
            return None if len(str(e)) < 1000 else f"a message of {len(str(e))} characters"
        return f"refused what the package reads: {e}"
    if official is None:
        return "read what the package refuses"
    if ours.keys() != official.keys():
        return f"names {sorted(ours)} and {sorted(official)}"
    for name, tensor in ours.items():
        if data[tensor.offset : tensor.offset + tensor.nbytes] != official[name] and official[name] != b"?":
            return f"{name} differs"
    return None


def _bytes(opened, name: str) -> bytes:
    try:
        return opened.get_tensor(name).tobytes()
    except Exception:  # types that numpy has no name for
        return b"?"


def _twice_or_listed(data: bytes) -> bool:
    """The two things that the package reads and we refuse: a name that stands twice, of which it takes the last, and a tensor as
    a list instead of an object."""
    text = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    twice = False

    def once(pairs: list) -> dict:
        nonlocal twice
        twice |= len(dict(pairs)) != len(pairs)
        return dict(pairs)

    header = json.loads(text, object_pairs_hook=once)
    entries = [v for k, v in header.items() if k != "__metadata__"]
    return twice or any(not isinstance(e, dict) or isinstance(e["dtype"], dict) for e in entries)


READERS = {"safetensors": safetensors}


def compare(name: str, seed: int, count: int, folder: Path) -> Iterator[tuple[int, str]]:
    """The seeds, of so many files, whose reading differs, with what differs."""
    for i in range(seed, seed + count):
        if (wrong := READERS[name](random.Random(i), folder)) is not None:
            yield i, wrong
