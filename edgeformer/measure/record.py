"""Records: one JSON line per row and test, llama-bench's stable columns first, so that rows of different tools can be pooled.

Like llama-bench, prompt processing (`n_gen` 0) and text generation (`n_prompt` 0) are separate tests. `avg_ts` is the mean of
the rounds' tokens per second, as in llama-bench, not tokens / mean time. `record.schema.json` describes every field; unknown
values are null, never zero.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeformer
from edgeformer.checkpoint import bundle
from edgeformer.errors import ArtefactError, InputError
from edgeformer.files.atomic import is_stream, replace_file
from edgeformer.files.locks import held
from edgeformer.measure.harness import Run, ShapeResult
from edgeformer.measure.noise import Noise
from edgeformer.measure.ranking import ranks
from edgeformer.measure.reading import SCHEMA_VERSION
from edgeformer.measure.roofline import bound
from edgeformer.measure.row import Row, quantile
from edgeformer.measure.settings import Settings
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest
from edgeformer.weights.costs import costs


def records(
    run: Run,
    spec: Model,
    *,
    machine: dict[str, Any],
    name: str,
    settings: Settings,
    rates: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return a run's records. Times in ns, rates in tokens per second over the whole batch.

    rates: the machine's peak rates, from `measure_rates`.
    """
    out: list[dict[str, Any]] = []
    for result in run.shapes:
        places = ranks(result.rows, result.noise)
        for row in result.rows:
            if run.interrupted and row.status == "ok" and not row.rounds:
                continue  # not measured
            tests = [True] + ([False] if result.shape.gen else [])
            for prefill in tests:
                record = _record(row, spec, machine, name, prefill, rates or {})
                record |= _of_the_run(run, result, settings, spec, prefill)
                out.append(record | {"rank": places.get(id(row)), "twin": row.plan.again})
    return out


def _of_the_run(run: Run, result: ShapeResult, settings: Settings, spec: Model, prefill: bool) -> dict[str, Any]:
    noise: Noise | None = result.prefill_noise if prefill else result.noise
    ids = settings.prompts_of(spec, 1, result.shape.depth + result.shape.prompt)
    return {
        "run_id": run.run_id,
        "seed": settings.seed,
        "prompt_text": settings.text_name,
        "prompt_sha256": _sha256(ids.tobytes()),
        "noise_low": noise and noise.low,
        "noise_high": noise and noise.high,
        "run_flags": [flag.text for flag in result.flags],
        "conditions": result.conditions,
    }


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def artefact_facts(row: Row, spec: Model) -> dict[str, Any]:
    """Bytes of an artefact's files, its quantization method, and the bytes its weights take."""
    counted, plan = costs(spec), row.plan
    weight_bytes = counted.weight_bytes.get(plan.precision)
    facts: dict[str, Any] = {"artifact_bytes": None, "quant_scheme": None, "bits_per_weight": None, "target": None}
    if plan.opens != "checkpoint":
        try:
            manifest = bundle.read_manifest(plan.source)
        except ArtefactError:
            return facts | {"weight_bytes": weight_bytes}
        linked = sum(entry["bytes"] for entry in manifest["linked"].values())
        facts["artifact_bytes"] = sum(manifest["files"].values()) + linked
        quantization = manifest.get("quantization") or {}
        facts["quant_scheme"] = quantization.get("method") or quantization.get("format")
        facts["bits_per_weight"] = quantization.get("bits_per_weight")
        facts["target"] = manifest["target"]
        if facts["bits_per_weight"]:
            weight_bytes = int(counted.parameters * facts["bits_per_weight"] / 8)
    if facts["bits_per_weight"] is None and weight_bytes is not None:
        facts["bits_per_weight"] = 8 * weight_bytes / counted.parameters
    return facts | {"weight_bytes": weight_bytes}


def _roofline(
    row: Row, spec: Model, facts: dict[str, Any], median_ns: float | None, prefill: bool, rates: dict
) -> dict[str, Any]:
    device = "cpu" if str(row.facts.get("device", "cpu")).startswith("cpu") else "gpu"
    found = None
    if facts["weight_bytes"] and device in rates and row.plan.ranked and not row.served:
        found = bound(
            spec,
            row.shape,
            rates[device],
            weight_bytes=facts["weight_bytes"],
            kv=row.facts.get("kv") or "fp32",
            compute=row.plan.compute,
            prefill=prefill,
        )
    return {
        "bytes_per_call": found and found.bytes,
        "flops_per_call": found and found.flops,
        "bound_ns": found and found.ns,
        "bound_by": found and found.by,
        "roofline_frac": found.ns / median_ns if found and median_ns else None,
    }


@dataclass(frozen=True)
class _Half:
    """One half of a row, prefill or decode, which becomes one record: rounds in nanoseconds and in tokens per second."""

    row: Row
    prefill: bool
    rounds_ns: list[int]
    rounds_ts: list[float]
    medians_ns: list[float]

    @classmethod
    def of(cls, row: Row, prefill: bool) -> _Half:
        """Build from a row's rounds."""
        shape = row.shape
        if prefill:
            ns = row.prefill_ns()
        else:
            ns = [sum(r["decode_ns"]) // shape.concurrency for r in row.rounds if r["decode_ns"]]
        tokens = (shape.prompt if prefill else shape.gen) * shape.batch
        ts = [tokens * 1e9 / sample for sample in ns]
        if row.served and not prefill:  # n tokens have n - 1 intervals; a rate per client
            ts = [len(r["decode_ns"]) * 1e9 / sum(r["decode_ns"]) for r in row.rounds if r["decode_ns"]]
        return cls(row, prefill, ns, ts, row.prefill_medians_ns() if prefill else row.decode_medians_ns())

    @property
    def median_ns(self) -> float | None:
        """Median over rounds."""
        return statistics.median(self.medians_ns) if self.medians_ns else None

    @property
    def tokens(self) -> int:
        """Tokens per round, over all sequences of the batch."""
        return (self.row.shape.prompt if self.prefill else self.row.shape.gen) * self.row.shape.batch


def _record(row: Row, spec: Model, machine: dict, name: str, prefill: bool, rates: dict[str, Any]) -> dict[str, Any]:
    half, facts = _Half.of(row, prefill), artefact_facts(row, spec)
    return {
        **_llama_bench(half, spec, machine, name, facts["weight_bytes"]),
        **_subject(row, spec, name),
        **facts,
        "status": row.status,
        "error": row.error,
        **_timing(half),
        **_costs(half),
        **_roofline(row, spec, facts, half.median_ns, prefill, rates),
        "blocks": row.blocks.get("prefill" if prefill else "decode"),
        "rates": rates or None,
        "flags": [flag.text for flag in row.flags],
        **_proof(row),
        **{f"machine_{k}": v for k, v in machine.items() if k not in ("cpu_info", "gpu_info")},
    }


def _llama_bench(half: _Half, spec: Model, machine: dict, name: str, weight_bytes: int | None) -> dict[str, Any]:
    """The columns that llama.cpp's llama-bench writes."""
    row, plan, shape, many = half.row, half.row.plan, half.row.shape, len(half.rounds_ns) > 1
    return {
        "build_commit": next(iter(row.versions.values()), ""),  # the runtime's version: most have no commit
        "build_number": 0,
        "cpu_info": machine["cpu_info"],
        "gpu_info": machine.get("gpu_info") or "",
        "backends": row.facts.get("provider") or plan.runtime,
        "model_filename": plan.source,
        "model_type": f"{name} {plan.precision}",
        "model_size": weight_bytes,
        "model_n_params": costs(spec).parameters,
        "n_batch": shape.batch,
        "n_threads": row.threads,
        "type_k": row.facts.get("kv"),
        "type_v": row.facts.get("kv"),
        "n_gpu_layers": row.facts.get("gpu_layers", 0),
        "main_gpu": 0,
        "tensor_split": "",
        "n_prompt": shape.prompt if half.prefill else 0,
        "n_gen": 0 if half.prefill else shape.gen,
        "n_depth": shape.depth if half.prefill else shape.depth + shape.prompt,
        "test_time": row.measured,
        "avg_ns": round(statistics.mean(half.rounds_ns)) if half.rounds_ns else None,
        "stddev_ns": round(statistics.stdev(half.rounds_ns)) if many else None,
        "avg_ts": statistics.mean(half.rounds_ts) if half.rounds_ts else None,
        "stddev_ts": statistics.stdev(half.rounds_ts) if many else None,
        "samples_ns": half.rounds_ns,
        "samples_ts": half.rounds_ts,
    }


def _subject(row: Row, spec: Model, name: str) -> dict[str, Any]:
    """The model, runtime, precision and shape of a row."""
    plan, shape = row.plan, row.shape
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": "edgeformer",
        "suite_version": edgeformer.__version__,
        "model": name,
        "runtime": plan.runtime,
        "label": plan.label,
        "runtime_versions": row.versions,
        "weights_digest": row.facts.get("weights_digest"),
        "facts": {k: v for k, v in row.facts.items() if k != "weights_digest"},
        "precision": plan.precision,
        "act_dtype": plan.compute,
        "kv_dtype": row.facts.get("kv"),
        "ctx_capacity": shape.capacity,
        "batch": shape.batch,
        "concurrency": shape.concurrency,
        "prompt": shape.prompt,
        "gen": shape.gen,
        "depth": shape.depth,
        "task": spec.task,
        "spec_digest": digest(spec),
    }


def _timing(half: _Half) -> dict[str, Any]:
    """Medians, inter-token latency (ITL) and time to first token (TTFT), with the rounds they come from."""
    row, decodes, first = half.row, not half.prefill and half.row.shape.gen > 0, half.row.first or {}
    walls = [r["wall_ns"] for r in row.rounds if r.get("wall_ns")]
    steps = row.decode_ns() if decodes else []
    encodes = [ns for r in row.rounds for ns in r.get("encode_ns", ())]
    return {
        "median_ns": half.median_ns,
        "median_ts": statistics.median(half.rounds_ts) if half.rounds_ts else None,
        "round_medians_ns": half.medians_ns,
        "step_samples_ns": [r["decode_ns"] for r in row.rounds] if decodes else None,
        "served": row.served,
        "round_wall_ns": walls or None,
        "throughput_ts": row.shape.concurrency * row.shape.gen * 1e9 / statistics.median(walls) if walls else None,
        "itl_ms_p50": quantile(steps, 0.5) / 1e6 if steps else None,
        "itl_ms_p90": quantile(steps, 0.9) / 1e6 if steps else None,
        "itl_ms_p99": quantile(steps, 0.99) / 1e6 if steps else None,
        "ttft_warm_ms": statistics.median(row.prefill_ns()) / 1e6 if row.rounds else None,
        "encode_ms": statistics.median(encodes) / 1e6 if encodes else None,
        "ttft_cold_ms": (row.load_s or 0) * 1e3 + first["prefill_ns"][0] / 1e6 if first else None,
        "load_ms": row.load_s and row.load_s * 1e3,
        "first_round": row.first,
        "discarded_rounds": row.discarded,
        "settled": row.settled,
    }


def _costs(half: _Half) -> dict[str, Any]:
    """CPU time, memory and energy."""
    row = half.row
    joules = row.energy.get("energy_j_prefill" if half.prefill else "energy_j_decode")
    return {
        "cpu_ns": [r["cpu_ns"] for r in row.rounds],
        "cpu_per_wall": row.cpu_per_wall(),
        "peak_rss_bytes": row.memory.get("peak_rss_bytes"),
        "rss_source": row.memory.get("rss_source"),
        "peak_footprint_bytes": row.memory.get("peak_footprint_bytes"),
        "peak_gpu_bytes": row.memory.get("peak_gpu_bytes"),
        "weights_mmap": row.facts.get("weights_mmap"),
        "energy_j": joules,
        "energy_j_per_token": joules / half.tokens if joules is not None else None,
        "energy_source": row.energy.get("energy_source"),
        "idle_w": row.energy.get("idle_w"),
    }


def _proof(row: Row) -> dict[str, Any]:
    """Evidence that the row's outputs match the original's."""
    worst = [c for c in row.checks if c.get("max_abs") is not None]
    return {
        "parity_reference": row.reference,
        "parity_verdict": row.verdict,
        "parity_max_abs": max((c["max_abs"] for c in worst), default=None),
        "parity_kl_mean": max((c["kl_mean"] for c in worst if c.get("kl_mean") is not None), default=None),
        "parity_checks": row.checks,
        "quality_kl_mean": row.quality.get("kl_mean"),
        "quality_top1": row.quality.get("top1"),
    }


def write_jsonl(records: list[dict[str, Any]], file: str | os.PathLike | None) -> None:
    """Append a run's records to a JSONL file, replacing earlier records of the same run; None writes to stdout.

    The file is replaced atomically, so it never holds part of a run. Concurrent writers wait for each other.

    Raises:
        InputError: the file can't be written; its previous content is unchanged.
    """
    text = "".join(json.dumps(r) + "\n" for r in records)
    if file is None:
        sys.stdout.write(text)
        return
    ours = {r["run_id"] for r in records}
    try:
        if is_stream(Path(file)):
            with Path(file).open("a", encoding="utf-8") as stream:
                stream.write(text)
            return
        path = Path(os.path.realpath(file))
        with held(path.parent, optional=True):
            before = path.read_bytes().splitlines() if path.exists() else []
            kept = b"".join(line + b"\n" for line in before if line.strip() and _run_id(line) not in ours)
            replace_file(path, kept + text.encode())
    except OSError as e:
        raise InputError(f"can't write records to {file}: {e.strerror}. Its previous content is unchanged") from e


def _run_id(line: bytes) -> str | None:
    try:
        return json.loads(line).get("run_id")
    except (ValueError, AttributeError, RecursionError):
        return None  # not ours: keep it
