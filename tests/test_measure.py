"""The harness on made-up and real rows: what is measured, what is ranked, what happens when a row dies."""

from __future__ import annotations

import json
import time

import psutil
import pytest
from support import STDLIB

from edgeformer import api
from edgeformer.checkpoint.loading import load
from edgeformer.errors import InputError
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.measure import harness, machine, table
from edgeformer.measure.harness import run
from edgeformer.measure.record import records, write_jsonl
from edgeformer.measure.row import Plan, Row, Shape, quantile
from edgeformer.measure.settings import Settings
from edgeformer.measure.timed import Round, warm_up
from edgeformer.spec.task import Task

SMALL = Settings(prompts=(12,), gens=(6,), rounds=2, threads=1, twice=False)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measure") / "onnx"
    export_onnx(load(STDLIB), folder)
    return str(folder)


@pytest.fixture(scope="module")
def done(artefact):
    spec = load(STDLIB).spec
    plans = [
        Plan("onnxruntime", artefact, "onnx", "fp32", "ort"),
        Plan("numpy", str(STDLIB), "checkpoint", "fp32", "numpy"),
        Plan("null", str(STDLIB), "checkpoint", "fp32", "null", ranked=False),
        Plan("onnxruntime", artefact + "-gone", "onnx", "fp32", "gone"),
    ]
    return run(plans, spec, SMALL, reference=(str(STDLIB), {}))


@pytest.fixture(scope="module")
def rows(done):
    return done.rows


def test_every_sample_is_kept(rows):
    for row in rows[:3]:
        assert row.status == "ok" and len(row.rounds) == SMALL.rounds
        assert all(len(r["decode_ns"]) == 6 and len(r["prefill_ns"]) == 1 for r in row.rounds)
        assert row.discarded and row.first and row.load_s and row.memory["peak_rss_bytes"] > 10e6


def test_all_rows_decode_the_same_tokens(rows):
    tokens = {tuple(r["tokens"][0]) for row in rows[:2] for r in row.rounds}
    assert len(tokens) == 1


def test_only_verified_rows_are_ranked(done):
    verified, rest = table.ordered(done)
    assert {r.plan.label for _, r in verified} == {"ort", "numpy"} and [n for n, _ in verified] == ["1", "2"]
    assert {r.plan.label for r in rest} == {"null", "gone"}
    assert table.speed(verified[0][1]) <= table.speed(verified[1][1])


def test_ranks_are_within_a_shape(artefact):
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    settings = Settings(prompts=(8, 16), gens=(4,), rounds=1)
    made = run(plans, load(STDLIB).spec, settings, reference=(str(STDLIB), {}))
    body = table.lines(made, Task.TEXT_GENERATION)[1]
    assert [line[0] for line in body] == ["1", "1"] and [line[3] for line in body] == ["8+4", "16+4"]


def test_a_failed_row_is_a_row(done):
    gone = done.rows[3]
    assert gone.status == "failed" and "does not exist" in gone.error
    text = table.markdown(done, Task.TEXT_GENERATION)
    assert "does not exist" in text and text.count("\n") == 5


def test_a_wrong_row_is_listed_not_ranked(artefact, tmp_path):
    import shutil

    from test_runtimes import corrupt

    wrong = tmp_path / "wrong"
    shutil.copytree(artefact, wrong)
    corrupt(wrong, "layers.1.attention.v.weight", lambda w: w.fill(0))
    plans = [Plan("onnxruntime", str(wrong), "onnx", "fp32", "wrong")]
    made = run(plans, load(STDLIB).spec, SMALL, reference=(str(STDLIB), {}))
    (row,) = made.rows
    assert row.verdict == "fail" and row.rounds and not row.ranked
    assert table.lines(made, Task.TEXT_GENERATION)[1][0][0] == "-"


def test_unchecked_rows_are_not_ranked(artefact):
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    (row,) = run(plans, load(STDLIB).spec, SMALL, reference=None).rows
    assert row.verdict == "unchecked" and not row.verified


def test_a_crash_is_a_row_with_its_last_words(artefact, monkeypatch, tmp_path):
    """A runtime that takes its process down."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'edgeformer.measure.worker' in ' '.join(sys.orig_argv):\n"
        "    import edgeformer.runtimes.null as null, os\n"
        "    def die(self, *a):\n"
        "        sys.stderr.write('my last words\\n'); sys.stderr.flush(); os._exit(11)\n"
        "    null.NullSession._step = die\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plans = [
        Plan("null", str(STDLIB), "checkpoint", "fp32", "dies"),
        Plan("onnxruntime", artefact, "onnx", "fp32", "lives"),
    ]
    dies, lives = run(plans, load(STDLIB).spec, SMALL, reference=None).rows
    assert dies.status == "failed" and "status 11: my last words" in dies.error
    assert lives.status == "ok" and len(lives.rounds) == SMALL.rounds


def test_a_silent_row_ends(artefact):
    plans = [Plan("numpy", str(STDLIB), "checkpoint", "fp32", "slow")]
    (row,) = run(
        plans, load(STDLIB).spec, Settings(prompts=(12,), gens=(6,), rounds=1, limit_s=0.01), reference=None
    ).rows
    assert row.status == "failed" and "exceeded its time limit of 0.01 s" in row.error


def test_records_start_with_llama_benchs_columns(done, tmp_path):
    spec = load(STDLIB).spec
    rows = done.rows
    made = records(done, spec, machine=machine.facts(), name="stdlib-5m", settings=SMALL)
    assert len(made) == 2 * len(rows)
    first = list(made[0])
    assert first[:6] == ["build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename"]
    for column in ("n_prompt", "n_gen", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "n_threads"):
        assert column in first
    prefill, decode = made[0], made[1]
    assert (prefill["n_depth"], decode["n_depth"]) == (0, 12)
    assert (prefill["n_prompt"], prefill["n_gen"], decode["n_prompt"], decode["n_gen"]) == (12, 0, 0, 6)
    assert abs(prefill["avg_ts"] - sum(12e9 / ns for ns in prefill["samples_ns"]) / 2) < 1e-6
    assert decode["parity_verdict"] == "pass" and decode["spec_digest"] and decode["cpu_per_wall"] > 0
    file = tmp_path / "rows.jsonl"
    file.write_text("what others wrote\n")
    write_jsonl(made, file)
    write_jsonl([{**r, "run_id": "another"} for r in made], file)
    write_jsonl(made, file)  # the same run again takes its own place
    lines = file.read_text().splitlines()
    assert lines[0] == "what others wrote" and len(lines) == 1 + 4 * len(rows)
    assert json.loads(lines[-len(made)]) == json.loads(json.dumps(made[0]))


def test_quantiles():
    assert quantile([4, 1, 3, 2], 0.5) == 2.5 and quantile([5], 0.9) == 5 and quantile([0, 10], 0.9) == 9


def test_warm_up_ends_when_rounds_agree():
    times = iter([100, 50, 49, 48, 47])
    rounds, settled = warm_up(lambda: Round(prefill_ns=[next(times)]))
    assert settled and [r.prefill_ns for r in rounds] == [[100], [50], [49], [48]]
    wild = iter(10**n for n in range(20))
    rounds, settled = warm_up(lambda: Round(prefill_ns=[next(wild)]))
    assert len(rounds) == 10 and not settled
    slow = iter([25 * 10**9, 30 * 10**9, 40 * 10**9, 1])
    assert len(warm_up(lambda: Round(prefill_ns=[next(slow)]))[0]) == 3  # a minute is enough


def test_cpu_per_wall():
    row = Row(Plan("x", "x", "onnx", "fp32"), Shape(), threads=2)
    row.rounds = [{"prefill_ns": [10], "decode_ns": [5, 5], "cpu_ns": 38, "tokens": []}]
    assert row.cpu_per_wall() == 1.9


def test_threads_are_what_was_asked_for(artefact):
    """CPU time, not belief: one thread may not use two CPUs."""
    plans = [
        Plan("onnxruntime", artefact, "onnx", "fp32", "ort"),
        Plan("numpy", str(STDLIB), "checkpoint", "fp32", "numpy"),
    ]
    settings = Settings(prompts=(64,), gens=(16,), rounds=2, threads=1)
    for row in run(plans, load(STDLIB).spec, settings, reference=None).rows:
        assert row.cpu_per_wall() < 1.2, row.plan.label


def test_api_refuses_what_cannot_be_compared(artefact):
    with pytest.raises(InputError, match="one architecture"):
        api.bench([artefact, "smollm2-135m"], runtimes=["onnxruntime", "null"])
    with pytest.raises(InputError, match=r"exceed the 1024 positions of"):
        api.bench(artefact, settings=Settings(prompts=(1000,), gens=(100,)))
    with pytest.raises(InputError, match="numpy: it opens a checkpoint, this is an ONNX artefact"):
        api.bench(artefact, runtimes=["numpy"])


def test_a_row_that_dies_between_rounds(artefact, monkeypatch):
    """Its process is killed while another row runs; the other row's samples survive."""
    from edgeformer.measure import harness

    real, victims = harness._round, []

    def kill_first(row, ask, bench):
        if row.plan.label == "dies" and not victims:
            victims.append(row)
            workers = [c for c in psutil.Process().children() if "edgeformer.measure.worker" in c.cmdline()]
            first = min(workers, key=lambda child: child.create_time())  # rows start in order
            first.kill()
        real(row, ask, bench)

    monkeypatch.setattr(harness, "_round", kill_first)
    plans = [
        Plan("numpy", str(STDLIB), "checkpoint", "fp32", "dies"),
        Plan("onnxruntime", artefact, "onnx", "fp32", "lives"),
    ]
    dies, lives = run(plans, load(STDLIB).spec, SMALL, reference=None).rows
    assert dies.status == "failed" and "status -9" in dies.error
    assert lives.status == "ok" and len(lives.rounds) == SMALL.rounds


def test_an_interrupted_run_keeps_what_was_measured(artefact, monkeypatch):
    from edgeformer.measure import harness

    real, calls = harness._round, []

    def interrupt(row, ask, bench):
        calls.append(row)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(row, ask, bench)

    monkeypatch.setattr(harness, "_round", interrupt)
    done = run(
        [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")],
        load(STDLIB).spec,
        Settings(prompts=(12,), gens=(6,), rounds=5, threads=1),
        reference=(str(STDLIB), {}),
    )
    assert done.interrupted and len(done.rows[0].rounds) == 1 and done.rows[0].verified


def test_each_row_is_checked_on_what_it_ran(artefact):
    """The prompt and its own continuation, at the row's own length."""
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    settings = Settings(prompts=(4, 600), gens=(3,), rounds=1)
    short, long = run(plans, load(STDLIB).spec, settings, reference=(str(STDLIB), {})).rows
    assert [c["name"] for c in short.checks] == ["full", "cached", "greedy"] and short.verified
    assert long.checks[0]["verdict"] == "unchecked" and long.checks[1]["verdict"] == "pass" and long.verified


def test_peak_memory_is_the_runtimes_not_the_checks(artefact):
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    settings = Settings(prompts=(400,), gens=(8,), rounds=1)
    with_check, without = (
        run(plans, load(STDLIB).spec, settings, reference=r).rows[0].memory["peak_rss_bytes"]
        for r in ((str(STDLIB), {}), None)
    )
    assert abs(with_check - without) < 15e6


def test_unchecked_evidence_claims_nothing(artefact):
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    rows = run(plans, load(STDLIB).spec, SMALL, reference=None).rows
    assert table.explanation(rows[0]).split("; ")[0] == "no reference: give --against MODEL"


def test_a_row_that_runs_out_of_time_keeps_its_rounds(artefact, monkeypatch):
    """By a clock that goes on by 200 s each time it is read: an hour is a few rounds, however fast this machine is."""

    class Clock:
        sleep, now = staticmethod(time.sleep), 0.0

        @classmethod
        def perf_counter(cls):
            cls.now += 200.0
            return cls.now

    monkeypatch.setattr(harness, "time", Clock)
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    settings = Settings(prompts=(12,), gens=(6,), rounds=100, threads=1, twice=False, limit_s=3600, profile=True)
    (row,) = run(plans, load(STDLIB).spec, settings, reference=(str(STDLIB), {})).rows
    assert row.status == "ok" and row.verified and 2 < len(row.rounds) < 20
    assert f"time limit: {len(row.rounds)} of 100 rounds in 3600 s" in {flag.text for flag in row.flags}


def test_what_fails_afterwards_is_a_remark(artefact, monkeypatch, tmp_path):
    """Energy and profiles come after the rounds: a counter that breaks makes no row fail."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'edgeformer.measure.worker' in ' '.join(sys.orig_argv):\n"
        "    import edgeformer.measure.energy as energy\n"
        "    def broken():\n"
        "        raise RuntimeError('the meter went away')\n"
        "    energy.find_meter = broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plans = [Plan("onnxruntime", artefact, "onnx", "fp32", "ort")]
    (row,) = run(plans, load(STDLIB).spec, SMALL, reference=(str(STDLIB), {})).rows
    assert (
        row.status == "ok"
        and row.ranked
        and any("no energy: RuntimeError: the meter went away" in f.text for f in row.flags)
    )


def test_text_of_others_is_shown_as_it_is(done):
    """Errors and labels are no markup."""
    from copy import deepcopy

    from rich.console import Console

    odd = deepcopy(done)
    odd.rows[3].error = '[/INST] pip install "edgeformer[torch]" [bold]'
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table.rich_table(odd, Task.TEXT_GENERATION, "[a] title [/b]"))
    text = console.export_text()
    assert 'pip install "edgeformer[torch]" [bold]' in text and "[a] title [/b]" in text


def test_a_sweep_without_rows_is_an_error(artefact):
    with pytest.raises(InputError, match="no rows for 8\\+4, 4 clients: no runtime here supports this shape"):
        api.bench(artefact, settings=Settings(prompts=(8,), gens=(4,), concurrency=(4,)))


def test_a_pipe_gets_each_record_once(tmp_path):
    import subprocess
    import sys

    command = [
        sys.executable,
        "-m",
        "edgeformer",
        "bench",
        str(STDLIB),
        "--runtimes",
        "null",
        "--prompt",
        "8,16",
        "--gen",
        "4",
    ]
    command += ["--rounds", "1", "--no-roofline", "--json", "/dev/fd/1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(records) == 2 * 2


def test_labels_tell_rows_apart():
    from edgeformer.measure.plans import label

    plans = [Plan("onnxruntime", s, "onnx", "fp32") for s in ("a/x", "b/x", "b/y")]
    plans.append(Plan("numpy", "m", "checkpoint", "fp32"))
    labels = [p.label for p in label(plans)]
    assert labels == ["onnxruntime (a/x)", "onnxruntime (b/x)", "onnxruntime (b/y)", "numpy"]
