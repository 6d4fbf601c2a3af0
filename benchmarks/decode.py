"""Prefill and decode against the peers: `python benchmarks/decode.py FOLDER [ROUNDS] [THREADS]`, after export.py.

Rows in one interleaved run: our artefact in our onnxruntime adapter; ONNX Runtime GenAI on its builder's export; raw
ONNX Runtime with shared buffers on the builder's export. fp32, 128 prompt + 64 generated tokens, equal threads. Every row
is first, second, ... as often as the others, since the process that loads first is a little slower. Ratios are round by round,
peer time / our time: above 1 means that we are faster. "edgeformer again" is the same artefact twice: the noise.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

from edgeformer.checkpoint.loading import load
from edgeformer.inference.threads import physical_cores
from edgeformer.measure import table
from edgeformer.measure.harness import Run, ShapeResult, run
from edgeformer.measure.row import Plan, Row
from edgeformer.measure.settings import Settings
from edgeformer.spec.task import Task

HERE = Path(__file__).parent


def register_peers(folder: Path) -> None:
    """An installed distribution as the import system sees it: peers become runtimes through an entry point."""
    info = folder / "edgeformer_peers-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeformer-peers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgeformer.runtimes]\nbuilder_genai = peers.builder_genai\nbuilder_raw = peers.builder_raw\n"
    )
    paths = [str(HERE), str(folder)]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def main() -> None:
    """Run and print."""
    folder = Path(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else physical_cores()
    register_peers(folder / "peers")
    ours, builder, model = folder / "out" / "copy", folder / "out" / "builder", folder / "m135"
    shutil.copy(ours / "spec.json", builder / "spec.json")
    plans = [
        Plan("onnxruntime", str(ours), "onnx", "fp32", "edgeformer"),
        Plan("builder_genai", str(builder), "onnx", "fp32", "genai"),
        Plan("builder_raw", str(builder), "onnx", "fp32", "raw onnxruntime"),
        Plan("onnxruntime", str(ours), "onnx", "fp32", "edgeformer again"),
    ]
    spec = load(model).spec
    settings = Settings(prompts=(128,), gens=(64,), rounds=-(-rounds // len(plans)), threads=threads, twice=False)
    rows: dict[str, Row] = {}
    for turn in range(len(plans)):  # the process that loads first runs some per cent slower, whoever it is
        order = plans[turn:] + plans[:turn]
        done = run(order, spec, settings, reference=(str(model), {}), report=lambda s: print(s, file=sys.stderr))
        for row in done.rows:
            kept = rows.setdefault(row.plan.label, row)
            if kept is not row:
                kept.rounds += row.rounds
    together = Run([ShapeResult(next(iter(rows.values())).shape, list(rows.values()))])
    print(table.markdown(together, Task.TEXT_GENERATION))
    mine = rows.pop("edgeformer")
    noise = rows.pop("edgeformer again")
    for peer in [*rows.values(), noise]:
        for name, ours_ns, theirs_ns in (
            ("prefill", mine.prefill_ns(), peer.prefill_ns()),
            ("decode", mine.decode_medians_ns(), peer.decode_medians_ns()),
        ):
            ratios = sorted(t / o for o, t in zip(ours_ns, theirs_ns, strict=True))
            low, high = ratios[0], ratios[-1]
            print(f"{peer.plan.label} / edgeformer, {name}: {statistics.median(ratios):.3f} x ({low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
