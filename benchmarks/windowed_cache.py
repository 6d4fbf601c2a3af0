"""KV caches that hold the window only: `python benchmarks/windowed_cache.py [DEPTH]`.

12 layers of width 256, five of six with a window of 512: `export` with and without `--windowed-cache`, in ONNX Runtime and in
GenAI where it is installed, one thread. Decode at DEPTH (8192) positions, median of 100 steps and of three interleaved rounds,
with its range; the caches' bytes."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgeformer.api import export
from edgeformer.checkpoint.loading import load
from edgeformer.checkpoint.saving import save
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.spec import tensors

WINDOW, STEPS, ROUNDS = 512, 100, 3


def model(context: int) -> Decoder:
    """The spec."""
    norm = RMSNorm()
    blocks = [
        Block(
            attention=GQA(heads=4, kv_heads=1, head_dim=128, position=Rope(dim=128), mask=Mask(window=window)),
            ffn=GLU(hidden=512),
            norm=norm,
        )
        for window in ((WINDOW,) * 5 + (None,)) * 2
    ]
    return Decoder(vocab=1000, width=256, context=context, blocks=tuple(blocks), norm=norm)


def decode_ms(session: Session, ids: np.ndarray) -> float:
    """Milliseconds of a step after all but the last ids."""
    session.reset()
    session.forward(ids[:, :-STEPS])
    taken = []
    for at in range(ids.shape[1] - STEPS, ids.shape[1]):
        start = time.perf_counter_ns()
        session.forward(ids[:, at : at + 1])
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(taken)


def main() -> None:
    """Run and print."""
    depth = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    spec, rng = model(depth + STEPS), np.random.default_rng(0)
    ids = rng.integers(0, spec.vocab, (1, depth + STEPS))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save(
            spec,
            {n: (rng.standard_normal(s) * 0.05).astype(np.float32) for n, s in tensors(spec).items()},
            folder / "m",
        )
        loaded = load(folder / "m")
        export(loaded, folder / "whole", eos=(1,))
        export(loaded, folder / "windowed", eos=(1,), windowed_cache=True)
        for name in ("onnxruntime", "ort_genai"):
            runtime = require(name)[0]
            if runtime.unavailable() is not None:
                continue
            opened = {kind: runtime.open(folder / kind, Options(threads=1)) for kind in ("whole", "windowed")}
            rounds = [{kind: decode_ms(session, ids) for kind, session in opened.items()} for _ in range(ROUNDS)]
            for kind in opened:
                times = [r[kind] for r in rounds]
                print(f"{name:12} {kind:9} {statistics.median(times):6.2f} ms ({min(times):.2f}-{max(times):.2f})")
            ratio = statistics.median(r["whole"] / r["windowed"] for r in rounds)
            print(f"{name:12} whole / windowed: {ratio:.2f}")
        slots = {"whole": 12 * ids.size, "windowed": 10 * WINDOW + 2 * ids.size}
        print("caches:", ", ".join(f"{kind} {n * 2 * 128 * 4 / 1e6:.0f} MB" for kind, n in slots.items()))


if __name__ == "__main__":
    main()
