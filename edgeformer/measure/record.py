"""Records: one JSON line per row and test, llama-bench's stable columns first, so that rows of many tools pool.

llama-bench reports prompt processing (`n_gen` 0) and text generation (`n_prompt` 0) as separate tests; so do we. `avg_ts` is
the mean of the rounds' tokens per second, as in llama-bench, not tokens / mean time.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from edgeformer.inspection import costs
from edgeformer.measure.harness import Settings
from edgeformer.measure.row import Row, quantile
from edgeformer.spec import Model, digest

SCHEMA_VERSION = 1


def records(
    rows: list[Row],
    spec: Model,
    *,
    machine: dict[str, Any],
    name: str,
    settings: Settings,
    run_id: str,
) -> list[dict[str, Any]]:
    """The records of a run. Times in ns, rates in tokens (encoders: tokens of the batch) per second."""
    out: list[dict[str, Any]] = []
    for row in rows:
        tests = [(row.plan.prompt, 0)] + ([(0, settings.gen)] if spec.task == "text-generation" else [])
        for n_prompt, n_gen in tests:
            record = _record(row, spec, machine, name, n_prompt, n_gen)
            out.append(record | {"run_id": run_id, "seed": settings.seed})
    return out


def _record(row: Row, spec: Model, machine: dict, name: str, n_prompt: int, n_gen: int) -> dict[str, Any]:
    counted = costs(spec)
    tokens = (n_prompt or n_gen) * row.plan.batch
    samples = row.prefill_ns() if n_prompt else [sum(r["decode_ns"]) for r in row.rounds if r["decode_ns"]]
    many = len(samples) > 1
    rates = [tokens * 1e9 / ns for ns in samples]
    steps = row.decode_ns()
    plan, first = row.plan, row.first or {}
    return {
        # llama-bench's columns
        "build_commit": next(iter(row.versions.values()), None),  # the runtime's version: most have no commit to name
        "build_number": 0,
        "cpu_info": machine["cpu_info"],
        "gpu_info": "",
        "backends": plan.runtime,
        "model_filename": plan.source,
        "model_type": f"{name} {plan.precision}",
        "model_size": counted.weight_bytes.get(plan.precision),
        "model_n_params": counted.parameters,
        "n_batch": row.plan.batch,
        "n_threads": row.threads,
        "n_gpu_layers": 0,
        "main_gpu": 0,
        "tensor_split": "",
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": row.plan.prompt if n_gen else 0,
        "test_time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(statistics.mean(samples)) if samples else None,
        "stddev_ns": round(statistics.stdev(samples)) if many else None,
        "avg_ts": statistics.mean(rates) if rates else None,
        "stddev_ts": statistics.stdev(rates) if many else None,
        "samples_ns": samples,
        "samples_ts": rates,
        # ours
        "schema_version": SCHEMA_VERSION,
        "suite": "edgeformer",
        "runtime": plan.runtime,
        "runtime_versions": row.versions,
        "weights_digest": row.facts.get("weights_digest"),
        "facts": {k: v for k, v in row.facts.items() if k != "weights_digest"},
        "precision": plan.precision,
        "task": spec.task,
        "spec_digest": digest(spec),
        "status": row.status,
        "error": row.error,
        "median_ts": statistics.median(rates) if rates else None,
        "step_samples_ns": [r["decode_ns"] for r in row.rounds] if n_gen else None,
        "itl_ms_p50": quantile(steps, 0.5) / 1e6 if n_gen and steps else None,
        "itl_ms_p90": quantile(steps, 0.9) / 1e6 if n_gen and steps else None,
        "itl_ms_p99": quantile(steps, 0.99) / 1e6 if n_gen and steps else None,
        "ttft_warm_ms": statistics.median(row.prefill_ns()) / 1e6 if row.rounds else None,
        "ttft_cold_ms": (row.load_s or 0) * 1e3 + first["prefill_ns"][0] / 1e6 if first else None,
        "load_ms": row.load_s and row.load_s * 1e3,
        "first_round": row.first,
        "discarded_rounds": row.discarded,
        "cpu_ns": [r["cpu_ns"] for r in row.rounds],
        "cpu_per_wall": row.cpu_per_wall(),
        "peak_rss_bytes": row.peak_rss_bytes,
        "rss_source": row.rss_source,
        "parity_reference": row.reference,
        "parity_verdict": row.verdict,
        "parity_checks": row.checks,
        **{f"machine_{k}": v for k, v in machine.items() if k != "cpu_info"},
    }


def write_jsonl(records: list[dict[str, Any]], file: str | os.PathLike | None) -> None:
    """Append records to a JSONL file in one write; None is stdout."""
    text = "".join(json.dumps(r) + "\n" for r in records)
    if file is None:
        sys.stdout.write(text)
        return
    with Path(file).open("a", encoding="utf-8") as f:
        f.write(text)
