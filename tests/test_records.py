"""Records: their schema, our older ones, llama-bench's files of every age in, and files for llama-bench's own script out."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import jsonschema
import pytest
from support import ROOT, STDLIB

from edgeformer.checkpoint.loading import load
from edgeformer.errors import InputError
from edgeformer.measure import machine
from edgeformer.measure.harness import Run, ShapeResult
from edgeformer.measure.llama_bench import as_llama_bench
from edgeformer.measure.reading import read_records, schema
from edgeformer.measure.record import records, write_jsonl
from edgeformer.measure.row import Plan, Row, Shape
from edgeformer.measure.settings import Settings
from edgeformer.verification.verdict import PASS

LLAMA_BENCH = ROOT / "tests" / "llama_bench"
RATES = {"cpu": {"bandwidth": [[10**6, 40e9], [512 * 10**6, 20e9]], "fp32_flops": 1e11, "int8_ops": 4e11}}


def made(*, versions: dict[str, str] | None = None) -> list[dict]:
    """Records of two made-up rows, one of them failed."""
    shape = Shape(128, 64)
    good = Row(Plan("numpy", str(STDLIB), "checkpoint", "fp32", "numpy"), shape, 2, verdict=PASS, load_s=0.1)
    step = {"prefill_ns": [10**7], "decode_ns": [10**6] * 64, "cpu_ns": 10**8, "tokens": [[1] * 64], "wall_ns": None}
    good.rounds = [step, {**step, "decode_ns": [2 * 10**6] * 64}]
    good.versions, good.facts = versions or {"numpy": "2.0"}, {"kv": "fp32", "device": "cpu"}
    good.checks = [{"name": "cached", "verdict": "pass", "max_abs": 1e-5, "kl_mean": 1e-9}]
    bad = Row(Plan("torch", str(STDLIB), "checkpoint", "fp32", "torch"), shape, 2, status="failed", error="it broke")
    run = Run([ShapeResult(shape, [good, bad])], "run")
    settings = Settings(threads=2)
    return records(run, load(STDLIB).spec, machine=machine.facts(), name="stdlib-5m", settings=settings, rates=RATES)


def test_every_record_keeps_to_the_schema():
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for record in made():
        validator.validate(json.loads(json.dumps(record)))
    described = set(schema()["properties"])
    written = {name for name in made()[0] if not name.startswith("machine_")}
    assert written <= described, f"not described: {written - described}"
    assert described <= written, f"never written: {described - written}"


def test_rates_are_of_batches_and_rounds():
    prefill, decode, failed, _ = made()
    assert prefill["samples_ts"] == [12800.0, 12800.0] and decode["avg_ts"] == 750.0 == sum((1000.0, 500.0)) / 2
    assert decode["median_ns"] == 1.5e6 and decode["step_samples_ns"][1][0] == 2 * 10**6
    assert failed["avg_ts"] is None and failed["rank"] is None and failed["error"] == "it broke"
    assert decode["rank"] == 1 and decode["peak_rss_bytes"] is None and decode["energy_j"] is None


def test_the_roofline_of_a_row():
    """By hand: 5,278,976 weights of which the tied table is read once as the head; half of the tokens generated."""
    _, decode, *_ = made()
    kv_per_token = 2 * 6 * 2 * 32 * 4  # keys and values, 6 layers, 2 heads of 32, float32
    norms = 13 * 256
    weights = 4 * (5_278_976 - norms)
    read = weights + kv_per_token * (128 + 32 + 1)
    assert math.isclose(decode["bytes_per_call"], read, rel_tol=1e-6)
    assert decode["bound_by"] == "bandwidth" and math.isclose(decode["bound_ns"], read / 20e9 * 1e9, rel_tol=1e-6)
    assert math.isclose(decode["roofline_frac"], decode["bound_ns"] / 1.5e6)


@pytest.mark.parametrize("file", sorted(LLAMA_BENCH.glob("*.[cj]*")), ids=lambda f: f.name)
def test_llama_bench_of_any_age(file):
    prefill, decode = read_records(file)
    assert prefill["suite"] == "llama-bench" and prefill["parity_verdict"] == "unchecked" and prefill["rank"] is None
    assert (prefill["n_gen"], decode["n_prompt"]) == (0, 0) and prefill["n_prompt"] and decode["n_gen"]
    assert (
        prefill["kv_dtype"] == "fp16" and isinstance(prefill["avg_ts"], float) and isinstance(prefill["n_threads"], int)
    )
    if file.suffix == ".csv":
        assert (
            prefill["avg_ts"] == 6863.1
            and prefill["precision"] == "Q4_0"
            and prefill["cpu_info"] == 'AMD "Ryzen" 7, 8 cores'
        )
        assert decode["stddev_ns"] is None and decode["itl_ms_p50"] == pytest.approx(
            2133 / 128
        )  # it had wrapped around
        assert prefill["weights_mmap"] is (None if file.name.startswith("2023") else True)
        assert prefill["backends"] == ("METAL" if file.name[:4] in ("2023", "2024") else "CPU")
        assert (file.name[:4] == "2023") == ("low_vram" in prefill)  # columns that nobody knows any more are kept
    else:
        assert len(decode["samples_ns"]) == 3 and decode["median_ts"] in decode["samples_ts"]


def test_odd_numbers_and_broken_files(tmp_path):
    row = json.loads((LLAMA_BENCH / "2026.jsonl").read_text().splitlines()[0])
    text = json.dumps(row).replace(f'"stddev_ts": {row["stddev_ts"]}', '"stddev_ts": -nan')
    (tmp_path / "nan.jsonl").write_text(text + "\n")
    assert read_records(tmp_path / "nan.jsonl")[0]["stddev_ts"] is None
    for name, content, message in (
        ("empty.jsonl", "", "contains no records"),
        ("cut.jsonl", text[:200], "line 1: not JSON .* if the file was truncated"),
        ("other.json", '[{"a": 1}]', "not a record of edgeformer or llama-bench"),
        ("list.json", "[1, 2]", "isn't a list of records"),
        ("table.csv", "a,b\n1,2\n", "has no column n_prompt, n_gen, avg_ts"),
        ("bare.jsonl", '{"suite": "edgeformer", "schema_version": 1}', "record 1 is damaged: KeyError"),
        ("true.jsonl", '{"suite": "edgeformer", "schema_version": true}', "written by a newer edgeformer"),
        ("types.jsonl", json.dumps({**row, "n_gen": [1]}), "record 1 is damaged: TypeError"),
        ("new.jsonl", '{"suite": "edgeformer", "schema_version": 99}', "written by a newer edgeformer"),
        (
            "wrong.jsonl",
            json.dumps({**made()[0], "parity_verdict": "splendid"}),
            "record 1: parity_verdict: 'splendid'",
        ),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            read_records(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        read_records(tmp_path / "nothing")


def test_records_of_our_first_schema(tmp_path):
    """As `bench --json` wrote them before there were shapes and twins."""
    gone = (
        "model",
        "label",
        "batch",
        "concurrency",
        "prompt",
        "gen",
        "depth",
        "flags",
        "run_flags",
        "conditions",
        "twin",
        "rank",
        "median_ns",
        "round_medians_ns",
    )
    old = [{k: v for k, v in r.items() if k not in gone} | {"schema_version": 1} for r in made()[:2]]
    write_jsonl(old, tmp_path / "old.jsonl")
    prefill, decode = read_records(tmp_path / "old.jsonl")
    assert prefill["model"] == "stdlib-5m" and (decode["prompt"], decode["gen"], decode["batch"]) == (128, 64, 1)
    assert decode["rank"] is None and decode["parity_verdict"] == "pass" and decode["median_ns"] == 2 * 10**6


def test_what_llama_benchs_script_needs(tmp_path):
    """Its required columns, and values it can take: scalars, no null in what rows are matched by, one length of names."""
    both = made() + made(versions={"numpy": "2.0.11-long"})
    rows = [json.loads(line) for line in as_llama_bench(both).splitlines()]
    assert (
        len(rows) == 4
        and len({len(r["build_commit"]) for r in rows}) == 1
        and len({r["build_commit"] for r in rows}) == 2
    )
    keys = "cpu_info gpu_info backends n_gpu_layers n_cpu_moe tensor_buft_overrides model_filename model_type n_batch n_ubatch"
    keys += " embeddings cpu_mask cpu_strict poll n_threads type_k type_v load_mode no_kv_offload split_mode main_gpu"
    keys += (
        " tensor_split flash_attn n_prompt n_gen n_depth fit_target fit_min_ctx use_mmap build_commit test_time avg_ts"
    )
    for row in rows:
        assert all(isinstance(row[k], (str, int, float, bool)) for k in keys.split())
    with pytest.raises(InputError, match="none of these records has a rate"):
        as_llama_bench(made()[2:])


SCRIPT = ROOT / "tests" / "peer_files" / "compare-llama-bench.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="bash tests/peers gets llama.cpp's compare-llama-bench.py")
def test_llama_benchs_own_script_reads_it(tmp_path):
    pytest.importorskip("git")
    pytest.importorskip("tabulate")
    (tmp_path / "two.jsonl").write_text(as_llama_bench(made() + made(versions={"numpy": "2.1"})))
    command = [
        sys.executable,
        str(SCRIPT),
        "--tool",
        "llama-bench",
        "-i",
        "two.jsonl",
        "-b",
        "numpy-2.0",
        "-c",
        "numpy-2.1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert "pp128" in done.stdout and "12800.00" in done.stdout and "1.00" in done.stdout
