"""Write safetensors files in shards: shapes first, then one tensor in memory at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.weights.safetensors_file import DTYPES

SHARD_BYTES = 5 << 30
"""The limit of Hugging Face's and mlx-lm's writers."""
_OTHERS = {"F64": np.float64, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "U32": np.uint32,
           "BOOL": np.bool_}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {np.dtype(dtype): name for name, dtype in _OTHERS.items()}
"""Dtypes that can be written -> their safetensors names."""


@dataclass(frozen=True)
class Group:
    """Tensors made together: name -> (dtype, shape), and the function that makes them, in that order."""

    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]]
    make: Callable[[], Sequence[np.ndarray]]

    def nbytes(self) -> int:
        """Total bytes of the tensors."""
        return sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in self.tensors.values())


def write_shards(
    folder: Path,
    groups: Sequence[Group],
    metadata: dict[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `model.safetensors`, or shards and `model.safetensors.index.json`.

    Args:
        folder: the output folder.
        groups: the tensors.
        metadata: the files' `__metadata__`.
        progress: called with (bytes done, total bytes).
    """
    shards: list[list[Group]] = [[]]
    for group in groups:
        if shards[-1] and sum(g.nbytes() for g in shards[-1]) + group.nbytes() > SHARD_BYTES:
            shards.append([])
        shards[-1].append(group)
    done, total, where = 0, sum(g.nbytes() for g in groups), {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as f:
            f.write(_header(shard, metadata))
            for group in shard:
                for (tensor, (dtype, shape)), array in zip(group.tensors.items(), group.make(), strict=True):
                    if array.dtype != dtype or array.shape != shape:
                        raise ValueError(f"{tensor} is {array.dtype} {array.shape}, declared as {dtype} {shape}")
                    f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                    where[tensor] = name
                done += group.nbytes()
                if progress is not None:
                    progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _header(shard: Sequence[Group], metadata: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for group in shard:
        for name, (dtype, shape) in group.tensors.items():
            size = int(np.prod(shape)) * dtype.itemsize
            entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    return struct.pack("<Q", len(text)) + text
