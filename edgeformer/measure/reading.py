"""Reads records of any version: ours, and llama-bench's JSON, JSONL and CSV in all their past layouts.

llama-bench's columns have changed over time: columns are read by name, unknown ones are kept, and renamed ones also get their
new name. Missing values are None. llama-bench doesn't compare outputs, so its rows are `unchecked`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeformer.errors import InputError
from edgeformer.files.json_file import lone_surrogate
from edgeformer.files.quoting import MAX_VALUE, plain, shown
from edgeformer.spec.task import Task

SCHEMA_VERSION = 2
_INTEGERS = frozenset((
    "build_number", "n_batch", "n_ubatch", "n_threads", "poll", "model_size", "model_n_params", "n_gpu_layers", "n_cpu_moe",
    "main_gpu", "n_prompt", "n_gen", "n_depth", "avg_ns", "stddev_ns", "fit_target", "fit_min_ctx", "flash_attn",
    "no_op_offload",
))  # fmt: skip
_FLOATS = frozenset(("avg_ts", "stddev_ts", "defrag_thold"))
_BOOLEANS = frozenset((
    "cuda", "opencl", "vulkan", "kompute", "metal", "sycl", "gpu_blas", "blas", "f16_kv", "mul_mat_q", "low_vram",
    "no_kv_offload", "use_mmap", "use_direct_io", "embeddings", "cpu_strict", "no_host", "repack",
))  # fmt: skip
_OLD_BACKENDS = ("cuda", "opencl", "vulkan", "metal", "sycl", "blas")
_LLAMA_BENCH = ("build_commit", "model_filename", "model_type", "n_prompt", "n_gen", "avg_ts")


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    return json.loads((files("edgeformer.measure") / "record.schema.json").read_text(encoding="utf-8"))


def read_records(file: str | Path) -> list[dict[str, Any]]:
    """Read a file's records, converted to our schema.

    Raises:
        InputError: the file can't be read, its format is unknown, or a record violates the schema.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise InputError(f"can't read records from {path}: {reason}") from e
    found = _parse(text, path) if text.strip() else []
    if not found:
        raise InputError(f"{path} contains no records")
    made = []
    for n, row in enumerate(found, 1):
        if (half := lone_surrogate(row)) is not None:
            raise InputError(f"{path}, record {n}: {half!a} contains a lone surrogate, so it isn't valid Unicode")
        try:
            record = _ours(row, path, n)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise InputError(
                f"{path}, record {n} is damaged: {type(e).__name__}: {plain(str(e), limit=MAX_VALUE)}"
            ) from e
        _validate(record, path, n)
        made.append(record)
    return made


def _parse(text: str, path: Path) -> list[dict[str, Any]]:
    start = text.lstrip()[:1]
    if start == "[":
        rows = _json(text, path, 1)
    elif start == "{":
        rows = []
        for n, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append(_json(line, path, n))
    else:
        reader = csv.DictReader(io.StringIO(text))
        missing = [name for name in ("n_prompt", "n_gen", "avg_ts") if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(
                f"{path} is neither JSON, JSONL nor llama-bench CSV: its header has no column {', '.join(missing)}"
            )
        rows = [{k: v for k, v in row.items() if k is not None} for row in reader]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} contains JSON that isn't a list of records")
    return rows


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_int=_integer)
    except RecursionError as e:
        raise InputError(f"{path}, line {line}: too deeply nested for a record") from e
    except ValueError:
        pass
    # llama-bench prints floats as C++ does: nan, -nan(ind), inf
    mended = re.sub(r"(?<=[:\[,])(\s*)-?(?:nan(?:\(\w+\))?|inf)(?=\s*[,\]}])", r"\1null", text)
    try:
        return json.loads(mended, parse_int=_integer)
    except (ValueError, RecursionError) as e:
        raise InputError(
            f"{path}, line {line}: not JSON ({e}); if the file was truncated while being written, remove that line"
        ) from e


def _integer(digits: str) -> int:
    """Parse a 64-bit integer, the range of a record's fields.

    Raises:
        ValueError: the number exceeds 64 bits.
    """
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"{shown(digits)} exceeds 64 bits")
    return value


def _typed(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        if name in _INTEGERS:
            return int(float(value)) if value else None
        if name in _FLOATS:
            number = float(value) if value else None
            return number if number is not None and number == number and abs(number) != float("inf") else None
    except (ValueError, OverflowError):
        return None
    if name in _BOOLEANS:
        return {"1": True, "true": True, "0": False, "false": False}.get(value, value)
    return value


def _ours(row: dict[str, Any], path: Path, n: int) -> dict[str, Any]:
    if row.get("suite") == "edgeformer":
        version = row.get("schema_version")
        if type(version) is not int or version > SCHEMA_VERSION:
            raise InputError(
                f"{path}, record {n}: written by a newer edgeformer (schema {version}, this one reads up to {SCHEMA_VERSION})"
            )
        return _from_first_schema(row) if version < SCHEMA_VERSION else row
    missing = [name for name in _LLAMA_BENCH if name not in row]
    if missing:
        raise InputError(f"{path}, record {n}: not a record of edgeformer or llama-bench: {', '.join(missing)} missing")
    return _from_llama_bench({name: _typed(name, value) for name, value in row.items()}, path)


def _from_first_schema(row: dict[str, Any]) -> dict[str, Any]:
    """Schema 1: one shape per run, no twins, no roofline."""
    decode = bool(row["n_gen"])
    prompt = row["n_depth"] if decode else row["n_prompt"]
    steps = row.get("step_samples_ns") or []
    medians = [sorted(s)[len(s) // 2] for s in steps if s] if decode else list(row.get("samples_ns") or [])
    name = str(row.get("model_type") or "").rpartition(" ")[0]
    made = {
        **dict.fromkeys(schema()["properties"]),
        "model": name or "unknown",
        "label": row.get("runtime"),
        "batch": row.get("n_batch") or 1,
        "concurrency": 1,
        "prompt": prompt,
        "gen": row["n_gen"] or None,
        "depth": 0,
        "facts": {},
        "flags": [],
        "run_flags": [],
        "conditions": {},
        "twin": False,
        "served": False,
        "round_medians_ns": medians,
        "median_ns": sorted(medians)[len(medians) // 2] if medians else None,
        **{k: [] for k in ("samples_ns", "samples_ts", "cpu_ns", "discarded_rounds", "parity_checks")},
        **row,
    }
    made["kv_dtype"] = made["kv_dtype"] or (row.get("facts") or {}).get("kv")
    return made | {"schema_version": SCHEMA_VERSION, "schema_read": 1}


def _precision(model_type: str) -> str:
    """`llama 1B Q4_0` -> `Q4_0`; `all F32` -> `F32`."""
    text = model_type.removesuffix(" (guessed)").split("- ")[0].strip()
    return text.rpartition(" ")[2] or "unknown"


def _from_llama_bench(row: dict[str, Any], path: Path) -> dict[str, Any]:
    if "backends" not in row:
        row["backends"] = ",".join(name.upper() for name in _OLD_BACKENDS if row.get(name)) or "CPU"
    if "type_k" not in row and "f16_kv" in row:
        row["type_k"] = row["type_v"] = "f16" if row["f16_kv"] else "f32"
    if "load_mode" not in row and "use_mmap" in row:
        row["load_mode"] = "mmap" if row["use_mmap"] else "none"
    elif "use_mmap" not in row and "load_mode" in row:
        row["use_mmap"] = "mmap" in str(row["load_mode"])
    if isinstance(row.get("stddev_ns"), int) and row["stddev_ns"] > 2**62:  # unsigned arithmetic wrapped around
        row["stddev_ns"] = None
    samples, tokens = row.get("samples_ns") or [], (row["n_prompt"] or 0) + (row["n_gen"] or 0)
    rates = row.get("samples_ts") or [tokens * 1e9 / ns for ns in samples if ns]
    each = (row["n_gen"] or 1) if not row["n_prompt"] else 1
    medians = [ns / each for ns in samples] or ([row["avg_ns"] / each] if row.get("avg_ns") else [])
    told = f"{path.resolve().name} {row['build_commit']} {row.get('cpu_info')}"
    median = sorted(medians)[len(medians) // 2] if medians else None
    made = {
        **dict.fromkeys(schema()["properties"]),
        "schema_version": SCHEMA_VERSION,
        "suite": "llama-bench",
        "run_id": hashlib.sha256(told.encode()).hexdigest()[:32],
        "model": str(row["model_type"]),
        "runtime": "llama.cpp",
        "label": "llama.cpp",
        "runtime_versions": {"llama.cpp": str(row["build_commit"])},
        "precision": _precision(str(row["model_type"])),
        "kv_dtype": {"f16": "fp16", "f32": "fp32"}.get(str(row.get("type_k")), row.get("type_k")),
        "batch": 1,
        "concurrency": 1,
        "prompt": row["n_prompt"] or row.get("n_depth") or 0,
        "gen": row["n_gen"],
        "depth": row.get("n_depth") or 0,
        "task": Task.TEXT_GENERATION,
        "status": "ok" if row["avg_ts"] is not None else "failed",
        "error": None if row["avg_ts"] is not None else "the file gives no rate",
        "facts": {"provider": row["backends"]},
        "flags": [],
        "run_flags": [],
        "conditions": {},
        "twin": False,
        "served": False,
        "parity_verdict": "unchecked",
        "parity_checks": [],
        "cpu_ns": [],
        "discarded_rounds": [],
        "weights_mmap": row.get("use_mmap"),
        **row,
        "samples_ns": samples,
        "samples_ts": rates,
        "round_medians_ns": medians,
        "median_ns": median,
        "median_ts": sorted(rates)[len(rates) // 2] if rates else row["avg_ts"],
        "itl_ms_p50": median / 1e6 if median and not row["n_prompt"] else None,
        "ttft_warm_ms": median / 1e6 if median and not row["n_gen"] else None,
        "weight_bytes": row.get("model_size"),
    }
    if row.get("model_size") and row.get("model_n_params"):
        made["bits_per_weight"] = 8 * row["model_size"] / row["model_n_params"]
    return made


def _validate(record: dict[str, Any], path: Path, n: int) -> None:
    """Validate against the JSON Schema if the package jsonschema (extra `report`) is installed, else check required keys."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError:
        if missing := [name for name in schema()["required"] if name not in record]:
            raise InputError(f"{path}, record {n}: {', '.join(missing)} missing") from None
        return
    if (error := best_match(Draft202012Validator(schema()).iter_errors(record))) is not None:
        where = ".".join(map(str, error.absolute_path)) or "it"
        raise InputError(f"{path}, record {n}: {where}: {error.message[:200]}")
