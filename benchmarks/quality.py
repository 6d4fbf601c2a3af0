"""Quality of every way to quantize: `python benchmarks/quality.py MODEL [FOLDER]`.

MODEL is a checkpoint trained on Python's standard library with a `validation.txt` of its own (`models/stdlib-5m`). Calibration
text is the library's source in this interpreter, less the files of validation.txt. Prints three tables: methods, run by torch;
one method's bits as deployed, in each runtime that is installed; an int8 key/value cache, generating token by token.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from _library import library_sources

from edgeformer import load
from edgeformer.api import export
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.cli.quality import show
from edgeformer.errors import EdgeformerError
from edgeformer.quantization.calibration import calibration_windows
from edgeformer.quantization.kv_scales import cache_scales
from edgeformer.quantization.run import quantize
from edgeformer.quantization.sensitivity import mixed
from edgeformer.verification.quality import Settings, measure

WINDOW, SAMPLES = 256, 128


def texts(loaded: LoadedModel) -> tuple[np.ndarray, np.ndarray]:
    """Calibration windows int64 [n, T], and the ids of the held-out text."""
    assert loaded.folder is not None
    tokenizer = read_tokenizer(loaded.folder)
    held_out = (loaded.folder / "validation.txt").read_text(encoding="utf-8")
    ids = np.array(tokenizer.encode("\n".join(library_sources(held_out))))
    windows = calibration_windows(ids, WINDOW, SAMPLES, loaded.spec.context, loaded.spec.vocab)
    return windows, np.array(tokenizer.encode(held_out))


def main() -> None:
    """Run and print."""
    loaded = load(sys.argv[1])
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    windows, held_out = texts(loaded)
    settings, made = Settings(window=WINDOW, tokens=16_384, threads=2), []

    def add(name: str, **options: object) -> None:
        quantize(loaded, folder / name, ids=windows, force=True, **options)  # type: ignore[arg-type]
        made.append(folder / name)

    for method in ("rtn", "search"):
        add(f"q8-{method}", format="q8", method=method)
    for method in ("rtn", "search", "awq", "gptq"):
        add(f"q4-{method}", method=method)
    add("q4-awq-exact", method="awq", options={"powers_of_two": True})
    for budget in (5.0, 5.5, 6.5):
        add(f"mixed-{budget}", method="gptq", formats=mixed(loaded, windows, budget)[0])
    show(measure(made, loaded, held_out, settings=settings))

    deployed = []
    best = load(folder / "q4-gptq")
    for name, options in {
        "onnx, accuracy level 0": {},
        "onnx, accuracy level 4": {"accuracy_level": 4},
        "onnx, fp16": {"precision": "q4f16"},
        "gguf": {"to": "gguf"},
        "mlx": {"to": "mlx"},
    }.items():
        try:
            export(best, folder / name, force=True, **options)  # type: ignore[arg-type]
            deployed.append(folder / name)
        except EdgeformerError as e:
            print(f"{name}: {e}")
    show(measure(deployed, loaded, held_out, settings=Settings(window=WINDOW, tokens=8192, threads=2)))

    for name, scales in {"kv fp32": None, "kv int8": cache_scales(loaded, windows)}.items():
        export(loaded, folder / name, force=True, cache_scales=scales)
    caches = [folder / "kv fp32", folder / "kv int8"]
    show(measure(caches, loaded, held_out, settings=Settings(window=WINDOW, tokens=4096, threads=2, cached=True)))


if __name__ == "__main__":
    main()
