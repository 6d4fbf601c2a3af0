"""Generation in MLX, ours beside mlx-lm's own loop on the same exported folder: `python benchmarks/mlx_decode.py MODEL`.

Prints the ratio of decode speeds (ours / mlx-lm) and of times to the first token (mlx-lm / ours), one per round, interleaved in
one process. Means something where MLX has a GPU; on CPU both run MLX's reference matrix products.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from edgeformer import export, load
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.measure.race import race
from edgeformer.verification.reference import sample_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--precision", default="4bit", help="as in `edgeformer export --to mlx`")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variant", default="", help="of the runtime mlx: ops, kernels, compile, eager")
    given = parser.parse_args()
    loaded = load(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        export(loaded, folder, to="mlx", precision=given.precision)
        options = Options(capacity=given.prompt + given.tokens, variant=given.variant)
        sessions = {name: require(name)[0].open(folder, options) for name in ("mlx", "mlx_lm")}
        laps = race(sessions, sample_ids(loaded.spec.vocab, given.prompt).tolist(), given.tokens, given.rounds)
    ours, theirs = laps["mlx"], laps["mlx_lm"]
    same = all(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))
    print(f"{loaded.name}, {given.precision}, {sessions['mlx'].facts()}; the same tokens: {same}")
    for name, of in laps.items():
        rates = [lap.decode_rate() for lap in of]
        print(f"{name}: {statistics.median(rates):.1f} tokens/s ({min(rates):.1f}-{max(rates):.1f})")
    show("decode, ours / mlx-lm", [a.decode_rate() / b.decode_rate() for a, b in zip(ours, theirs, strict=True)])
    show("first token, mlx-lm / ours", [b.first_s / a.first_s for a, b in zip(ours, theirs, strict=True)])


def show(what: str, ratios: list[float]) -> None:
    print(f"{what}: {statistics.median(ratios):.3f} x ({min(ratios):.3f}-{max(ratios):.3f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
