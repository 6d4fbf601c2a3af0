"""A safetensors file written tensor by tensor, in any order, that a later run can resume.

Shapes are known before values, so every tensor has its offset from the start. A journal beside the file lists the complete
tensors; it begins with a digest of the settings, and a file begun with other settings is started over.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.weights.safetensors_file import DTYPES

WEIGHTS, JOURNAL = "model.safetensors", "journal.txt"
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {np.dtype(np.uint8): "U8"}
Entry = tuple[np.dtype, tuple[int, ...]]


class PartialFile:
    """A safetensors file under construction.

    Args:
        folder: holds the file and its journal; created if needed.
        entries: name -> dtype and shape of every tensor.
        identity: digest of the settings.
    """

    def __init__(self, folder: Path, entries: dict[str, Entry], identity: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self._journal, self.entries = folder / WEIGHTS, folder / JOURNAL, entries
        header, self.offsets = _header(entries)
        self._identity = identity
        # a file with a second hard link is a finished output's weights and must never be modified
        mine = self.file.is_file() and self.file.stat().st_nlink == 1
        self.done = self._resumed(identity) if mine else set()
        if not self.done:
            self.file.unlink(missing_ok=True)
            self.file.write_bytes(header)
            self._append(identity, "wb")

    def _resumed(self, identity: str) -> set[str]:
        data = self._journal.read_bytes() if self._journal.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:  # drop an incomplete last line
            self._journal.write_bytes(whole)
        lines = whole.decode("utf-8", "replace").split("\n")[:-1]
        return set(lines[1:]) if lines and lines[0] == identity else set()

    def _append(self, line: str, mode: str = "ab") -> None:
        with self._journal.open(mode) as journal:
            journal.write(line.encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        """Write tensors at their offsets; on return they are synced to disk and recorded in the journal."""
        with self.file.open("r+b") as f:
            for name, x in tensors.items():
                dtype, shape = self.entries[name]
                if (x.dtype, x.shape) != (dtype, shape):
                    raise ValueError(f"{name} is {x.dtype} {x.shape}, but was declared as {dtype} {shape}")
                f.seek(self.offsets[name])
                f.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
            f.flush()
            os.fsync(f.fileno())
        self._append("\n".join(tensors))
        self.done |= tensors.keys()

    def complete(self) -> set[str]:
        """The tensors that the journal on disk lists as complete."""
        return self._resumed(self._identity)

    def read(self, name: str) -> np.ndarray:
        """Read a complete tensor."""
        dtype, shape = self.entries[name]
        with self.file.open("rb") as f:
            x = np.fromfile(f, dtype, int(np.prod(shape)), offset=self.offsets[name])
        return x.reshape(shape)


def _header(entries: dict[str, Entry]) -> tuple[bytes, dict[str, int]]:
    listed: dict[str, Any] = {"__metadata__": {"format": "edgeformer"}}
    offsets, at = {}, 0
    for name, (dtype, shape) in entries.items():
        size = int(np.prod(shape)) * dtype.itemsize
        listed[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        offsets[name] = at
        at += size
    text = json.dumps(listed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + offset for name, offset in offsets.items()}
