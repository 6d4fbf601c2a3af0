"""All checks that need a Mac, in one run and one file: Metal kernels' correctness and benefit, parity of all exports, and speed.

Each part runs regardless of the others' outcome; a part that can't run records the reason.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edgeformer
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.errors import EdgeformerError, ExportError, RuntimeUnavailable
from edgeformer.exporters.dispatch import export_as
from edgeformer.files.scratch import temporary_folder
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.measure import machine
from edgeformer.measure.bench import bench as measure_all
from edgeformer.measure.record import records
from edgeformer.measure.settings import Settings
from edgeformer.spec.task import Task
from edgeformer.verification import parity
from edgeformer.verification.reference import sample_ids

SCHEMA = 1
PARTS = ("kernels", "fused_attention", "tune", "parity", "generation", "bench")
BENCHED = (
    "mlx", "mlx:ops", "mlx:kernels", "mlx_lm", "onnxruntime", "llama_cpp", "llama_cpp:gpu", "torch:mps", "coreai", "coreai:cpu",
    "coreai:gpu",
)  # fmt: skip
Report = Callable[[str], None]


def mac_check(
    loaded: LoadedModel,
    *,
    parts: tuple[str, ...] = PARTS,
    anywhere: bool = False,
    rounds: int = 5,
    report: Report = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the parts and return the record, as plain JSON data.

    Args:
        loaded: the model that is tuned, verified and measured.
        parts: which of `PARTS` to run.
        anywhere: also run on machines without Metal, skipping kernels, to try the command.
        rounds: rounds of each measurement.
        report: called with progress messages.
        keep: called with the record so far, before the first part and after each.

    Raises:
        RuntimeUnavailable: no MLX, or no Metal and not `anywhere`.
    """
    require("mlx")
    import mlx.core as mx

    if not mx.metal.is_available() and not anywhere:
        raise RuntimeUnavailable("mac-check needs an Apple GPU; --anywhere runs the parts that don't")
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "edgeformer": edgeformer.__version__,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**machine.facts(), **_apple()},
        "metal": mx.metal.is_available(),
        "device": dict(mx.device_info()),
        "versions": {
            name: require(name)[0].versions() for name in ("mlx", "mlx_lm") if get(name)[0].unavailable() is None
        },
        "model": Path(loaded.name).resolve().name,
        "parts": {},
    }
    made = {
        "kernels": lambda: check_kernels(report),
        "fused_attention": check_fused_attention,
        "tune": lambda: _tuned(loaded, rounds, report),
        "parity": lambda: check_parity(loaded, report),
        "generation": lambda: generation(loaded, rounds, report),
        "bench": lambda: bench(loaded, rounds, report),
    }
    keep(record)
    for part in parts:
        report(part)
        record["parts"][part] = _guarded(made[part])
        keep(record)
    return record


def _guarded(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except RuntimeUnavailable as e:
        return {"status": "skipped", "reason": str(e)}
    except Exception as e:  # a traceback in the record lets us debug a machine we don't have
        return {"status": "error", "reason": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()}


def failed(record: dict[str, Any]) -> list[str]:
    """The parts that failed or raised."""
    return [name for name, part in record["parts"].items() if part["status"] in ("fail", "error")]


def _apple() -> dict[str, Any]:
    """On macOS: its version, the number of performance cores, and the Mac's model."""
    if platform.system() != "Darwin":
        return {}
    facts = {"macos": platform.mac_ver()[0]}
    for name, key in (("performance_cores", "hw.perflevel0.physicalcpu"), ("model", "hw.model")):
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True)
        if done.returncode == 0:
            facts[name] = done.stdout.strip()
    return facts


def _need_metal() -> None:
    import mlx.core as mx

    if not mx.metal.is_available():
        raise RuntimeUnavailable("no Metal on this machine")


def check_kernels(report: Report = lambda _: None) -> dict[str, Any]:
    """Check every case of every kernel in every dtype against float64, on the GPU. Errors are multiples of the tolerance."""
    from edgeformer.backends.mlx import metal
    from edgeformer.backends.mlx.metal._kernel import FLOATS

    _need_metal()
    results = []
    for name in metal.names():
        kernel = metal.get(name)
        for dtype in FLOATS:
            report(f"kernels: {name} {dtype}")
            for case in kernel.cases(dtype):
                entry: dict[str, Any] = {"kernel": name, "dtype": str(dtype), "case": case.name}
                try:
                    entry["error"] = case.error(case.call(kernel))
                    entry["body_error"] = case.error(case.body()) if case.defined else None
                except Exception as e:  # Apple's compiler may reject what g++ accepts
                    entry["failure"] = f"{type(e).__name__}: {e}"[:2000]
                results.append(entry)
    wrong = [r for r in results if "failure" in r or r["error"] > 1]
    return {"status": "fail" if wrong else "ok", "wrong": len(wrong), "cases": results}


def check_fused_attention() -> dict[str, Any]:
    """Compare the head sizes for which this MLX has a fused decode kernel with our table."""
    import mlx.core as mx

    from edgeformer.backends.mlx.metal.decode_attention import FUSED

    _need_metal()
    found = {}
    # not 192: MLX uses its kernel for it only when forced to
    for dim in (16, 32, 40, 48, 64, 72, 80, 96, 112, 128, 256):
        q, k = mx.zeros((1, 8, 1, dim), mx.float16), mx.zeros((1, 2, 64, dim), mx.float16)
        try:
            mx.eval(mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0, force_fused=True))
            found[dim] = True
        except (ValueError, RuntimeError):
            found[dim] = False
    differing = [dim for dim, fused in found.items() if fused != ((dim, dim) in FUSED)]
    return {"status": "fail" if differing else "ok", "fused": found, "other_than_our_table": differing}


def _tuned(loaded: LoadedModel, rounds: int, report: Report) -> dict[str, Any]:
    from edgeformer.runtimes.mlx import tune_here

    _need_metal()
    results = {}
    with temporary_folder() as scratch:
        for precision in ("bf16", "4bit"):  # the folders that are measured afterwards
            exported = export_as(loaded, scratch / precision, "mlx", precision=precision)
            compute, again = exported.manifest["compute"], load(exported.folder)
            made = tune_here(again, compute, rounds=rounds, report=lambda line: report(f"tune: {line}"))
            results[precision] = made.as_dict()
    wrong = any(made["wrong"] for made in results.values())
    return {"status": "fail" if wrong else "ok", "results": results}


def check_parity(loaded: LoadedModel, report: Report) -> dict[str, Any]:
    """Verdicts on fresh exports: MLX in fp32, bf16, 4 and 8 bits with both MLX runtimes, and ONNX in fp32."""
    verdicts: list[dict[str, Any]] = []
    with temporary_folder() as scratch:
        plans: list[tuple[str, str, dict[str, Any]]] = [("onnx", "onnxruntime", {"precision": "fp32"})]
        for precision in ("fp32", "bf16", "4bit", "8bit") if loaded.spec.task == Task.TEXT_GENERATION else ():
            plans += [("mlx", runtime, {"precision": precision}) for runtime in ("mlx", "mlx_lm")]
        for kind, runtime, options in plans:
            name = f"{kind}-{options['precision']}"
            folder = scratch / name
            if get(runtime)[0].unavailable() is not None:
                continue
            report(f"parity: {name} by {runtime}")
            try:
                if not folder.exists():
                    export_as(loaded, folder, kind, **options)
                verdict = parity.verify(folder, loaded, runtime=runtime, record=False)
                verdicts.append({"artefact": name, **verdict.as_dict()})
            except EdgeformerError as e:
                verdicts.append({"artefact": name, "runtime": runtime, "verdict": parity.FAIL, "error": str(e)})
    bad = [v for v in verdicts if v["verdict"] == parity.FAIL]
    return {"status": "fail" if bad else "ok", "verdicts": verdicts}


def generation(loaded: LoadedModel, rounds: int, report: Report) -> dict[str, Any]:
    """Race our decode loop against mlx-lm's on the same folders, in turns, in bf16 and 4 bits."""
    from edgeformer.measure.race import race

    require("mlx_lm")
    results: dict[str, Any] = {}
    length = min(256, loaded.spec.context)
    prompt = sample_ids(loaded.spec.vocab, length // 2).tolist()
    count = length - len(prompt)
    with temporary_folder() as scratch:
        for precision in ("bf16", "4bit"):
            folder = scratch / precision
            export_as(loaded, folder, "mlx", precision=precision)
            sessions = {}
            for name in ("mlx", "mlx:ops", "mlx:eager", "mlx:kernels", "mlx_lm"):
                try:
                    runtime, variant = require(name)
                    options = Options(capacity=len(prompt) + count, variant=variant)
                    sessions[name] = runtime.open(folder, options)
                except EdgeformerError:
                    continue
            report(f"generation: {precision}, {', '.join(sessions)}")
            laps = race(sessions, prompt, count, rounds)
            results[precision] = {
                name: {
                    "decode_tokens_per_s": [lap.decode_rate() for lap in of],
                    "median": statistics.median(lap.decode_rate() for lap in of),
                    "first_token_s": [lap.first_s for lap in of],
                    "tokens": of[0].tokens,
                    "facts": sessions[name].facts(),
                }
                for name, of in laps.items()
            }
    return {"status": "ok", "prompt": len(prompt), "tokens": count, "results": results}


def _unusable(name: str, loaded: LoadedModel) -> str | None:
    runtime, variant = get(name)
    return runtime.unavailable() or runtime.refuses(loaded.spec, Options(variant=variant))


def bench(loaded: LoadedModel, rounds: int, report: Report) -> dict[str, Any]:
    """Measure the standard rows, one process each, rounds interleaved: every runtime here that can run the model."""
    import mlx.core as mx

    missing, names = {}, []
    for name in BENCHED:
        if name.endswith((":kernels", ":mps", ":gpu")) and not mx.metal.is_available():
            missing[name] = "no Metal on this machine"
        elif (reason := _unusable(name, loaded)) is not None:
            missing[name] = reason
        else:
            names.append(name)
    settings = Settings(rounds=rounds)
    with temporary_folder() as scratch:
        folders = []
        opened = {"onnx": "onnxruntime", "mlx": "mlx_lm", "gguf": "llama_cpp", "coreai": "coreai"}
        for kind, runtime in opened.items():
            if runtime in names:
                folders.append(str(scratch / kind))
                plain = {"no_tokenizer": True} if kind == "gguf" else {}
                try:
                    export_as(loaded, folders[-1], kind, precision=None if kind == "mlx" else "fp32", **plain)
                except ExportError as e:  # expected: llama.cpp, for one, supports only some architectures
                    folders.pop()
                    missing[runtime] = str(e)
                    names = [name for name in names if name.partition(":")[0] != runtime]
        sources = [*folders, loaded.name]
        spec, run = measure_all(sources, runtimes=names, against=loaded.name, settings=settings, report=report)
        facts = machine.facts()
        rows = records(run, spec, machine=facts, name=Path(loaded.name).resolve().name, settings=settings)
    bad = [r for r in run.rows if r.status != "ok" or r.verdict == parity.FAIL]
    return {"status": "fail" if bad else "ok", "rows": rows, "missing": missing}
