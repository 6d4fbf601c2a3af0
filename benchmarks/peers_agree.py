"""Our rows beside the figures that runtimes' own benchmarks print, in turns in one run.

    python benchmarks/peers_agree.py MODEL [--llama-bench PATH] [--genai-benchmark benchmark_e2e.py] [--turns 5]

llama-bench is part of llama.cpp (build it from the sources that llama-cpp-python was built from); benchmark_e2e.py and its
metrics.py are in onnxruntime-genai's repository (benchmark/python; needs pandas and tqdm). A peer's ratio is to be within the
interval of our own row measured twice, and 5 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeformer import api
from edgeformer.checkpoint.loading import load
from edgeformer.inference.threads import physical_cores
from edgeformer.measure.harness import run
from edgeformer.measure.noise import interval
from edgeformer.measure.row import Plan
from edgeformer.measure.settings import Settings

PROMPT, GEN, ROUNDS = 128, 64, 5


def ours(plan: Plan, model: str, threads: int, *, check: bool = False) -> tuple[list[float], list[float]]:
    """Tokens per second, (prefill, decode) of each round. Checked once, apart: a peer computes no reference before its rounds."""
    settings = Settings(prompts=(PROMPT,), gens=(GEN,), rounds=ROUNDS, threads=threads, twice=False, energy=False)
    (row,) = run([plan], load(model).spec, settings, reference=(model, {}) if check else None).rows
    if row.status != "ok" or (check and not row.verified):
        sys.exit(f"{plan.runtime}: {row.error or row.checks}")
    # a peer's figure is of whole generations: all steps of a round together
    decode = [GEN * 1e9 / sum(r["decode_ns"]) for r in row.rounds]
    return [PROMPT * 1e9 / ns for ns in row.prefill_ns()], decode


def llama_bench(program: str, file: Path, threads: int) -> tuple[list[float], list[float]]:
    """llama-bench's samples, with the settings that our row has: CPU only, fp16 cache, no flash attention."""
    command = [program, "-m", str(file), "-p", str(PROMPT), "-n", str(GEN), "-r", str(ROUNDS), "-t", str(threads)]
    done = subprocess.run([*command, "-ngl", "0", "-fa", "0", "-o", "json"], capture_output=True, text=True, check=True)
    prefill, decode = json.loads(done.stdout)
    return prefill["samples_ts"], decode["samples_ts"]


def genai_benchmark(script: str, folder: Path, scratch: Path) -> tuple[list[float], list[float]]:
    """Its averages over as many repetitions; it prints no samples. Threads are those of the folder's genai_config.json."""
    command = [
        sys.executable,
        script,
        "-i",
        str(folder),
        "-b",
        "1",
        "-l",
        str(PROMPT),
        "-g",
        str(GEN),
        "-r",
        str(ROUNDS),
    ]
    command += [
        "-w",
        "3",
        "-k",
        "1",
        "--use_random_tokens",
        "--chat_template",
        "{input}",
        "-o",
        str(scratch / "out.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(script).parent)
    rates = {}
    for line in done.stdout.splitlines():
        for key in ("Prompt Processing Throughput", "Token Generation Throughput"):
            if key in line:
                rates[key] = float(line.rpartition(":")[2].split()[0])
    return [rates["Prompt Processing Throughput"]], [rates["Token Generation Throughput"]]


def compare(name: str, mine, theirs, turns: int) -> None:
    """mine, theirs: functions that measure once. Prints the ratio of medians, turn by turn in rotation."""
    mine(check=True)
    kinds = ("prefill", "decode")
    a, b, peer = ({kind: [] for kind in kinds} for _ in range(3))
    for turn in range(turns):
        order = [(mine, a), (theirs, peer), (mine, b)]
        for measure, into in order if turn % 2 == 0 else reversed(order):
            for kind, rates in zip(kinds, measure(), strict=True):
                into[kind].append(statistics.median(rates))
    for kind in kinds:
        noise = interval(a[kind], b[kind])
        both = [statistics.mean(pair) for pair in zip(a[kind], b[kind], strict=True)]
        ratios = sorted(p / o for p, o in zip(peer[kind], both, strict=True))
        assert noise is not None
        low, high = min(noise.low, 1 / noise.high) / 1.05, max(noise.high, 1 / noise.low) * 1.05
        median = statistics.median(ratios)
        print(
            f"{name}, {kind}: theirs {statistics.median(peer[kind]):.0f}, ours {statistics.median(both):.0f} tok/s,"
            f" theirs / ours {median:.3f} ({ratios[0]:.2f}-{ratios[-1]:.2f}); ours twice {noise.text()};"
            f" {'within' if low <= median <= high else 'OUTSIDE'} the interval and 5 %"
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--llama-bench")
    parser.add_argument("--genai-benchmark")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    threads = physical_cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.llama_bench:
            for precision in ("q8", "q4"):
                made = api.export(options.model, folder / precision, to="gguf", precision=precision)
                plan = Plan("llama_cpp:kv-f16", str(made.folder), "gguf", precision, compute="int8")
                file = folder / precision / "model.gguf"
                compare(
                    f"llama.cpp {precision}",
                    lambda check=False, plan=plan: ours(plan, options.model, threads, check=check),
                    lambda file=file: llama_bench(options.llama_bench, file, threads),
                    options.turns,
                )
        if options.genai_benchmark:
            api.export(options.model, folder / "onnx")
            config = folder / "onnx" / "genai_config.json"
            told = json.loads(config.read_text())
            told["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
            theirs = folder / "genai"
            api.export(options.model, theirs)
            (theirs / "genai_config.json").write_text(json.dumps(told))
            plan = Plan("ort_genai", str(folder / "onnx"), "onnx", "fp32")
            compare(
                "ONNX Runtime GenAI fp32",
                lambda check=False: ours(plan, options.model, threads, check=check),
                lambda: genai_benchmark(options.genai_benchmark, theirs, folder),
                options.turns,
            )


if __name__ == "__main__":
    main()
