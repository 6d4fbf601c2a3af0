"""The process that runs a Core AI asset: its runtime ends its process at errors, so it has one of its own.

`python -m edgeformer.runtimes._coreai_worker ASSET UNIT` answers frames on standard input. A frame is the length of a JSON header
(4 bytes, little-endian), the header, and the bytes of the arrays that it lists: {"do": ..., "arrays": [[name, dtype, shape]]}.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


def write_frame(stream: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a frame."""
    listed = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps({**header, "arrays": listed}).encode()
    stream.write(struct.pack("<I", len(head)) + head)
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a frame.

    Raises:
        EOFError: the other side is gone.
    """
    header = json.loads(_exactly(stream, struct.unpack("<I", _exactly(stream, 4))[0]))
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        kind = np.dtype(dtype)
        data = _exactly(stream, int(np.prod(shape)) * kind.itemsize)
        arrays[name] = np.frombuffer(data, kind).reshape(shape)
    return header, arrays


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


async def serve(asset: Path, unit: str, commands: IO[bytes], answers: IO[bytes]) -> None:
    """Load the asset, and answer until the other side is gone."""
    authoring: Any = importlib.import_module("coreai.authoring")
    runtime: Any = importlib.import_module("coreai.runtime")
    array, options = runtime.NDArray, None
    if sys.platform == "darwin":
        known, kinds = runtime.SpecializationOptions, runtime.ComputeUnitKind
        options = known.cpu_only() if unit == "cpu" else known.default()
        if unit in ("gpu", "ane"):
            kind = kinds.gpu() if unit == "gpu" else kinds.neural_engine()
            options = known.from_preferred_compute_unit_kind(kind)
    async with authoring.AIModelAsset.load(asset).executable(options) as model:
        functions, state = {}, {}
        write_frame(answers, {"done": True}, {})
        while True:
            try:
                header, arrays = read_frame(commands)
            except EOFError:
                return
            if header["do"] == "states":
                state = {name: array(np.zeros(shape, header["dtype"])) for name, shape in header["shapes"].items()}
                write_frame(answers, {"done": True}, {})
                continue
            start = time.perf_counter_ns()
            inputs = {name: array(given) for name, given in arrays.items()}
            if (name := header["function"]) not in functions:
                functions[name] = model.load_function(name)
            call = functions[name]
            made = await (call(inputs, state) if header["stateful"] else call(inputs))
            outputs = {name: np.array(made[name].numpy()) for name in header["outputs"]}
            write_frame(answers, {"done": True, "ns": time.perf_counter_ns() - start}, outputs)


def main() -> None:
    """Keep standard output for answers: libraries write to it."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.stdin.buffer, answers))
    except Exception as e:
        write_frame(answers, {"error": f"{type(e).__name__}: {e}"}, {})


if __name__ == "__main__":
    main()
