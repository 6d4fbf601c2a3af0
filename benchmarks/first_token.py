"""A cold start: `python benchmarks/first_token.py MODEL [ROUNDS] [THREADS]`.

Whole processes from their start to the first token after a prompt of 128, q4 on the same bits: `native` on an ONNX artefact,
and llama.cpp through llama-cpp-python. Medians of interleaved rounds, the first one left out; and what native's process spends
on what.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time

import edgeformer
from edgeformer.inference.threads import physical_cores

NATIVE = """
import sys, time
start = time.perf_counter()
from pathlib import Path
import numpy as np
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
imported = time.perf_counter()
session = require("native")[0].open(Path(sys.argv[1]), Options(threads=int(sys.argv[2]), capacity=256))
opened = time.perf_counter()
session.forward(np.arange(128)[None])
print(imported - start, opened - imported, time.perf_counter() - opened)
"""
LLAMA_CPP = """
import sys
from llama_cpp import Llama
threads = int(sys.argv[2])
model = Llama(sys.argv[1], n_ctx=256, n_batch=256, n_threads=threads, n_threads_batch=threads, verbose=False)
model.eval(list(range(128)))
print(model._ctx.get_logits()[0])
"""


def main(model: str, rounds: int, threads: int) -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as folder:
        edgeformer.export(model, f"{folder}/onnx", precision="q4", accuracy_level=4)
        commands = {"native": [sys.executable, "-c", NATIVE, f"{folder}/onnx", str(threads)]}
        if importlib.util.find_spec("llama_cpp") is not None:
            edgeformer.export(model, f"{folder}/gguf", to="gguf", precision="q4", no_tokenizer=True)
            commands["llama.cpp"] = [sys.executable, "-c", LLAMA_CPP, f"{folder}/gguf/model.gguf", str(threads)]
        times: dict[str, list[float]] = {name: [] for name in commands}
        parts: list[list[float]] = []
        for turn in range(rounds + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                if turn:
                    times[name].append(time.perf_counter() - start)
                if turn and name == "native":
                    parts.append([float(x) for x in done.stdout.split()])
        for name, found in times.items():
            shares = [a / b for a, b in zip(found, times["native"], strict=True)]
            print(
                f"{name}: {statistics.median(found):.2f} s ({min(found):.2f} - {max(found):.2f}),"
                f" {statistics.median(shares):.2f} x native's"
            )
        imports, opening, prompt = (statistics.median(x) * 1e3 for x in zip(*parts, strict=True))
        print(f"native: imports {imports:.0f} ms, opening {opening:.0f} ms, the prompt {prompt:.0f} ms")


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[2:]]
    main(sys.argv[1], *numbers, *[9, physical_cores()][len(numbers) :])
