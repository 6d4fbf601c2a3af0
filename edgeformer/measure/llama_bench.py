"""Converts records to the layout that llama.cpp's `scripts/compare-llama-bench.py` reads: JSONL with all its columns.

The script compares builds, and only between rows that match in every other column. So the build is the runtime and its version,
and columns that differ between runtimes are left out. Names are padded to one length, since it cuts them to the shortest.
"""

from __future__ import annotations

import json
from typing import Any

from edgeformer.errors import InputError

_FIXED: dict[str, Any] = {
    "build_number": 0, "gpu_info": "", "backends": "edgeformer", "n_ubatch": 0, "cpu_mask": "0x0", "cpu_strict": False,
    "poll": 0, "n_gpu_layers": 0, "n_cpu_moe": 0, "split_mode": "none", "main_gpu": 0, "no_kv_offload": False, "flash_attn": 0,
    "devices": "none", "tensor_split": "0.00", "tensor_buft_overrides": "none", "use_mmap": False, "load_mode": "none",
    "embeddings": False, "no_op_offload": 0, "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip


def as_llama_bench(records: list[dict[str, Any]]) -> str:
    """Return JSONL of the measured rows, without failed rows and twins.

    Raises:
        InputError: no record has a rate.
    """
    kept = [r for r in records if r["avg_ts"] is not None and not r.get("twin")]
    if not kept:
        raise InputError("none of these records has a rate, so llama-bench's script has nothing to compare")
    names = [_build(r) for r in kept]
    width = max(map(len, names))
    return "".join(json.dumps(_row(r, name.ljust(width, "_"))) + "\n" for r, name in zip(kept, names, strict=True))


def _build(record: dict[str, Any]) -> str:
    versions = record.get("runtime_versions") or {}
    name = f"{record.get('label') or record['runtime']}-{next(iter(versions.values()), '')}"
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in name)


def _row(record: dict[str, Any], build: str) -> dict[str, Any]:
    cache = {"fp32": "f32", "fp16": "f16", "int8": "q8_0"}.get(
        str(record.get("kv_dtype")), record.get("kv_dtype") or "f32"
    )
    return {
        **_FIXED,
        "build_commit": build,
        "cpu_info": record.get("cpu_info") or "",
        "gpu_info": record.get("gpu_info") or "",
        "model_filename": record["model"],
        "model_type": f"{record['model']} {record['precision']}",
        "model_size": record.get("model_size") or 0,
        "model_n_params": record.get("model_n_params") or 0,
        "n_batch": record["batch"],
        "n_threads": record.get("n_threads") or 0,
        "type_k": cache,
        "type_v": cache,
        **{name: record.get(name) or 0 for name in ("n_prompt", "n_gen", "n_depth")},
        "test_time": record.get("test_time") or "",
        "avg_ns": record.get("avg_ns") or 0,
        "stddev_ns": record.get("stddev_ns") or 0,
        "avg_ts": record["avg_ts"],
        "stddev_ts": record.get("stddev_ts") or 0.0,
        "samples_ns": record["samples_ns"],
        "samples_ts": record["samples_ts"],
    }
