"""The rows of a report: one per measured row, with its prefill and decode tests merged and the records each number is from."""

from __future__ import annotations

import math
from typing import Any

from edgeformer.measure.reading import schema
from edgeformer.spec.task import Task

COLUMNS = (
    "model", "runtime", "precision", "machine", "shape", "rank", "prefill_ts", "decode_ts", "throughput_ts", "itl_ms_p50",
    "itl_ms_p90", "ttft_ms", "ttft_cold_ms", "load_ms", "peak_mb", "artifact_mb", "bits_per_weight", "kl", "roofline",
    "energy_mj", "verdict",
)  # fmt: skip
"""The columns of tables, in order."""


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One report row per measured row of a run; its `records` are the indices of its records, from 0.

    Rates are tokens per second of the whole batch, with the range over rounds; None means unknown.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for number, record in enumerate(records):
        row = found.setdefault(_key(record), _row(record))
        row["records"].append(number)
        _add(row, record)
    made = list(found.values())
    for number, row in enumerate(made):
        row["id"] = number
        row["flags"] = list(dict.fromkeys(row["flags"]))
    _mark_ties(made)
    return made


def machine_of(record: dict[str, Any]) -> str:
    """A machine's name: its processor, its accelerator and the number of compute threads."""
    name = record.get("machine_model") or record.get("cpu_info") or "unknown machine"
    gpu = f" + {record['gpu_info']}" if record.get("gpu_info") else ""
    threads = record.get("n_threads")
    return f"{name}{gpu}" + (f", {threads} threads" if threads else "")


def _key(record: dict[str, Any]) -> tuple:
    own = tuple(record.get(name) for name in ("run_id", "label", "model", "model_filename", "precision", "twin"))
    return (*own, *_shape(record), machine_of(record))


def _shape(record: dict[str, Any]) -> tuple:
    names = ("prompt", "gen", "depth", "batch", "concurrency")
    if record.get("schema_read") == 1:  # its prefill tests don't record how many tokens were generated afterwards
        return (record.get("prompt"), record["batch"])
    if record["suite"] == "llama-bench":  # its prefill and decode tests are separate rows
        others = {k: str(v) for k, v in record.items() if k not in schema()["properties"]}
        listed = ("n_batch", "n_threads", "type_k", "type_v", "n_gpu_layers", "main_gpu", "tensor_split")
        settings = [str(record.get(name)) for name in listed]
        return (*(record.get(name) for name in (*names, "n_prompt", "n_gen")), *settings, *sorted(others.items()))
    return tuple(record.get(name) for name in names)


def shape_text(record: dict[str, Any]) -> str:
    """`128+64`, `128+64 @512`, `×8`, `4 clients`; `pp128` and `tg64` of llama-bench; `8 × 128` of an encoder."""
    if record["suite"] == "llama-bench":
        parts = ([f"pp{record['n_prompt']}"] if record["n_prompt"] else []) + (
            [f"tg{record['n_gen']}"] if record["n_gen"] else []
        )
        return "+".join(parts) + (f" @{record['n_depth']}" if record.get("n_depth") else "")
    if record["task"] == Task.FEATURE_EXTRACTION:
        return f"{record['batch']} × {record['prompt']}"
    text = f"{record.get('prompt')}+{record.get('gen') or 0}"
    text += f" @{record['depth']}" if record.get("depth") else ""
    text += f" ×{record['batch']}" if record["batch"] > 1 else ""
    return text + (f", {record['concurrency']} clients" if record["concurrency"] > 1 else "")


def _row(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": 0,
        "records": [],
        "run": record["run_id"],
        "model": record["model"],
        "runtime": record["runtime"],
        "label": f"{record.get('label') or record['runtime']} · {record['precision']}",
        "precision": record["precision"],
        "machine": machine_of(record),
        "shape": shape_text(record),
        "task": record["task"],
        "context": (record.get("depth") or 0) + (record.get("prompt") or 0),
        "batch": record["batch"],
        "suite": record["suite"],
        "rank": record.get("rank"),
        "tie": False,
        "served": bool(record.get("served")),
        "throughput_ts": record.get("throughput_ts"),
        "twin": bool(record.get("twin")),
        "verdict": record["parity_verdict"] if record["status"] == "ok" else "failed",
        "ranked": record.get("rank") is not None,
        "error": record.get("error"),
        "max_abs": record.get("parity_max_abs"),
        "kl": record.get("quality_kl_mean"),
        "top1": record.get("quality_top1"),
        "peak_mb": _scaled(record.get("peak_rss_bytes"), 1e-6),
        "peak_gpu_mb": _scaled(record.get("peak_gpu_bytes"), 1e-6),
        "artifact_mb": _scaled(record.get("artifact_bytes") or record.get("weight_bytes"), 1e-6),
        "bits_per_weight": record.get("bits_per_weight"),
        "load_ms": record.get("load_ms"),
        "ttft_cold_ms": record.get("ttft_cold_ms"),
        "flags": [],
        "run_flags": [],  # those of all rows of a shape
        "blocks": {},
        "noise_low": None,
        "noise_high": None,
        **dict.fromkeys(
            ("prefill_ts", "prefill_low", "prefill_high", "decode_ts", "decode_low", "decode_high", "ttft_ms")
        ),
        **dict.fromkeys(("itl_ms_p50", "itl_ms_p90", "roofline", "roofline_prefill", "energy_mj")),
        "points": [],
    }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _add(row: dict[str, Any], record: dict[str, Any]) -> None:
    decode = bool(record["n_gen"])
    kind = "decode" if decode else "prefill"
    shared = record.get("run_flags") or []
    row["flags"] += [*record["flags"], *shared]
    row["run_flags"] = list(dict.fromkeys([*row["run_flags"], *shared]))
    if record["suite"] == "llama-bench" and record["n_prompt"] and decode:
        row["flags"].append(f"{record['avg_ts']:.1f} tokens per second, prompt and generation together")
        return
    rates = _rates(record, decode)
    if rates:
        ordered = sorted(rates)
        row[f"{kind}_ts"] = (
            ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 :][:2]) / 2
        )
        row[f"{kind}_low"], row[f"{kind}_high"] = ordered[0], ordered[-1]
    elif record.get("avg_ts") is not None:  # llama-bench's CSV has no samples
        spread = record.get("stddev_ts") or 0.0
        row[f"{kind}_ts"] = record["avg_ts"]
        row[f"{kind}_low"], row[f"{kind}_high"] = record["avg_ts"] - spread, record["avg_ts"] + spread
    if decode:
        row["itl_ms_p50"], row["itl_ms_p90"] = record.get("itl_ms_p50"), record.get("itl_ms_p90")
        row["roofline"] = record.get("roofline_frac")
        row["energy_mj"] = _scaled(record.get("energy_j_per_token"), 1e3)
        low, high = record.get("noise_low"), record.get("noise_high")
        row["noise_low"], row["noise_high"] = (low, high) if low is not None and high is not None else (None, None)
    else:
        row["ttft_ms"] = record.get("ttft_warm_ms")
        row["roofline_prefill"] = record.get("roofline_frac")
    if record.get("blocks"):
        row["blocks"][kind] = record["blocks"]
    if record.get("flops_per_call") and record.get("median_ns"):
        seconds = record["median_ns"] / 1e9
        row["points"].append(
            {
                "test": kind,
                "intensity": record["flops_per_call"] / record["bytes_per_call"],
                "gflops": record["flops_per_call"] / seconds / 1e9,
                "fraction": record.get("roofline_frac"),
            }
        )


def _rates(record: dict[str, Any], decode: bool) -> list[float]:
    """Tokens per second of each round, by its median step; for other tools, their own samples."""
    if record["suite"] != "edgeformer":
        return list(record["samples_ts"])
    medians = record.get("round_medians_ns") or []
    tokens = record["batch"] * (1 if decode else record["n_prompt"])
    return [tokens * 1e9 / ns for ns in medians if ns]


def _mark_ties(made: list[dict[str, Any]]) -> None:
    """Mark the rows of one shape of one run that share a rank."""
    for row in made:
        same = [
            r
            for r in made
            if r["ranked"] and all(r[k] == row[k] for k in ("run", "shape", "model", "machine", "served", "rank"))
        ]
        row["tie"] = row["ranked"] and len(same) > 1


def roofs(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of the roofline's lines, the upper bounds of rows in their arithmetic: per machine and device, bandwidth up to the
    ridge, then the fp32 rate; the rates of fp16 and int8 have lines of their own."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        for device, rates in (record.get("rates") or {}).items():
            found.setdefault((machine_of(record), device), rates)
    lines = []
    for (machine, device), rates in found.items():
        peak = rates.get("fp32_flops")
        measured = sorted(rates.get("bandwidth") or [])
        if not peak or not measured:
            continue
        fastest = max(bandwidth for _, bandwidth in measured)
        drawn: list[tuple[str, list[float], float, float]] = []
        for name, at in (("memory", -1), ("cache", 0)) if len(measured) > 1 else (("memory", -1),):
            size, bandwidth = measured[at]
            title = f"{device}: fp32, {name} {bandwidth / 1e9:.0f} GB/s ({size / 1e6:.0f} MB)"
            drawn.append((title, [0.05, peak / bandwidth, 2000.0], bandwidth, peak))
        for name, title in (("fp16_flops", "fp16"), ("int8_ops", "int8")):
            if rates.get(name):
                drawn.append((f"{device}: {title}", [rates[name] / fastest, 2000.0], fastest, rates[name]))
        for title, places, bandwidth, level in drawn:
            lines += [
                {"machine": machine, "roof": title, "intensity": x, "gflops": min(x * bandwidth, level) / 1e9}
                for x in places
            ]
    return lines


def finite(value: object) -> Any:
    """The same data with None for infinities and NaN, which JSON can't represent."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list) else value
