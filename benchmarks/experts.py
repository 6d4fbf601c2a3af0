"""Quantizing a mixture of experts: `python benchmarks/experts.py FOLDER [BLOCKS]` after `make_checkpoints.py FOLDER moe30b`.

A bf16 checkpoint in the shape of Qwen3-30B-A3B, a sparse file: `export --precision q4` as a whole process, its peak beside 2 ×
the largest stored tensor + 500 MB, the nodes of its ONNX file and the bits per weight. Then the first BLOCKS (2) blocks by GPTQ,
the peak beside one block in float32, its second moments and 500 MB. The export needs 17 GB of disk."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import onnx
from make_checkpoints import EXPERTS, make
from processes import measure

from edgeformer.checkpoint.loading import load
from edgeformer.layers.moe import MoE
from edgeformer.spec import layers, tensors

ALLOWANCE = 500e6


def main() -> None:
    """Run and print."""
    folder, blocks = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2
    model, out = folder / "moe30b", folder / "out"
    edgeformer = [sys.executable, "-m", "edgeformer"]
    largest = max(t.nbytes for s in load(model).require_weights().sources.values() for t in s.stored.parts())
    shutil.rmtree(out / "moe", ignore_errors=True)
    seconds, peak = measure([*edgeformer, "export", str(model), "-o", str(out / "moe"), "--precision", "q4"])
    written = onnx.load(out / "moe" / "model.onnx", load_external_data=False)
    bits = json.loads((out / "moe" / "edgeformer.json").read_text())["quantization"]["bits_per_weight"]
    print(f"export --precision q4: {seconds:.0f} s, peak {peak:.0f} MB of {(2 * largest + ALLOWANCE) / 1e6:.0f} MB")
    bodies = {f.name: f for f in written.functions}
    called = {name: len(f.node) for name, f in bodies.items()}
    print(f"nodes: {called}, {len(written.graph.node)} in the graph; {bits} bits per weight")
    shutil.rmtree(out / "moe", ignore_errors=True)

    small = folder / "moe30b-part"
    make(small, EXPERTS | {"num_hidden_layers": blocks}, "BF16", 2, fill=False)
    text = folder / "text.txt"
    text.write_bytes((Path(__file__).parent.parent / "models" / "stdlib-5m" / "validation.txt").read_bytes()[:60_000])
    shutil.rmtree(out / "gptq", ignore_errors=True)
    seconds, peak = measure([
        *edgeformer, "quantize", str(small), "-o", str(out / "gptq"), "--method", "gptq", "--calibration", str(text),
        "--samples", "16",
    ])  # fmt: skip
    spec = load(small).spec
    block = sum(math.prod(s) for n, s in tensors(spec).items() if n.startswith("layers.0.")) * 4
    moe = next(layer for _, layer, _ in layers(spec) if isinstance(layer, MoE))
    width = spec.width
    attention = 4096**2 + width**2  # of o's inputs, and of q's, k's and v's
    moments = 4 * (moe.experts * (width**2 + moe.hidden**2) + attention)
    allowed = (block + moments + ALLOWANCE) / 1e6
    print(f"GPTQ of {blocks} blocks: {seconds:.0f} s, peak {peak:.0f} MB of {allowed:.0f} MB")
    shutil.rmtree(out / "gptq", ignore_errors=True)


if __name__ == "__main__":
    main()
