"""What a killed run leaves, and how it goes on; the cache of artefacts; a disk that is full; memory that runs out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from support import STDLIB

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import load
from edgeformer.checkpoint.saving import save
from edgeformer.errors import InputError
from edgeformer.files import cache
from edgeformer.measure.comparison import Build, cache_key, make
from edgeformer.measure.journal import Journal
from edgeformer.measure.record import write_jsonl
from edgeformer.measure.row import Plan, Row, Shape

BENCH = [
    sys.executable,
    "-m",
    "edgeformer",
    "bench",
    str(STDLIB),
    "--runtimes",
    "numpy,null",
    "--prompt",
    "8,16",
    "--gen",
    "4",
]
BENCH += ["--rounds", "4", "--threads", "1", "--no-roofline"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFORMER_CACHE", str(tmp_path / "cache"))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_kill_and_resume(tmp_path):
    """Killed in the middle of the second shape: nothing that was measured is lost, nothing is there twice."""
    file = tmp_path / "rows.jsonl"
    process = subprocess.Popen([*BENCH, "--json", str(file)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    shapes = 0
    for line in process.stderr:
        shapes += line.startswith("measured ")
        if shapes == 1 and line.startswith("round 3/"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    (journal,) = (tmp_path / "cache" / "runs").glob("*.jsonl")
    with journal.open("a") as f:
        f.write('{"event": "round", "at": [1, 0], "rou')  # and cut off in the middle of a line
    before = lines(file)  # the first shape's records were written when it was done
    assert len(before) == 3 * 2 and all(len(r["samples_ns"]) == 4 for r in before)
    kept = [json.loads(text) for text in journal.read_text().splitlines()[:-1]]
    second = {
        n: [e["round"]["decode_ns"] for e in kept if e["event"] == "round" and e["at"] == [1, n]] for n in range(3)
    }
    assert sum(map(len, second.values())) >= 3
    done = subprocess.run([*BENCH, "--json", str(file), "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = lines(file)
    assert len(after) == 2 * 3 * 2 and len({r["run_id"] for r in after}) == 1
    assert all(len(r["samples_ns"]) == 4 for r in after)
    decode = [r for r in after if r["n_gen"]]
    assert [r["samples_ns"] for r in decode[:3]] == [r["samples_ns"] for r in before if r["n_gen"]]
    for n, record in enumerate(decode[3:]):
        assert record["step_samples_ns"][: len(second[n])] == second[n]
        assert record["rank"] == (1 if n == 0 else None)
    assert not list((tmp_path / "cache" / "runs").glob("*.jsonl"))  # it is finished
    again = subprocess.run([*BENCH, "--resume"], capture_output=True, text=True)
    assert again.returncode == 2 and "no unfinished run to resume" in again.stderr


def test_ctrl_c_in_a_later_shape_can_be_resumed(tmp_path, monkeypatch):
    from edgeformer import api
    from edgeformer.measure import harness
    from edgeformer.measure.settings import Settings

    real, calls = harness._round, []

    def interrupt(row, ask, bench):
        calls.append(row)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(row, ask, bench)

    monkeypatch.setattr(harness, "_round", interrupt)
    settings = Settings(prompts=(8, 12), gens=(4,), rounds=2, twice=False)
    run = lambda resume: api.bench(str(STDLIB), runtimes=["null"], settings=settings, resume=resume)[1]  # noqa: E731
    first = run(False)
    assert first.interrupted and [len(row.rounds) for row in first.rows] == [2, 1]
    second = run(True)
    assert not second.interrupted and [len(row.rounds) for row in second.rows] == [2, 2]
    assert [row.rounds[0] for row in second.rows] == [row.rounds[0] for row in first.rows]
    assert second.rows[1].rounds[1]["process"] == 1 and second.run_id == first.run_id


def test_a_journal_is_of_one_measurement():
    journal, _ = Journal.begin("key", resume=False)
    row = Row(Plan("numpy", "m", "checkpoint", "fp32"), Shape(), 1, load_s=1.5, verdict="pass")
    journal.save((0, 0), row)
    journal.add("round", (0, 0), round={"prefill_ns": [1]})
    journal.add("round", (0, 1), round={"prefill_ns": [2]})
    journal.close(finished=False)
    resumed, _ = Journal.begin("key", resume=True)
    found = Row(row.plan, row.shape, 1)
    resumed.restore((0, 0), found)
    assert resumed.run_id == journal.run_id and found.load_s == 1.5 and found.rounds == [{"prefill_ns": [1]}]
    assert resumed.finished(0) is None
    with pytest.raises(InputError, match="no unfinished run to resume"):
        Journal.begin("another", resume=True)
    with pytest.raises(InputError, match="already running"):
        Journal.begin("key", resume=False)
    resumed.close(finished=False)
    _, remark = Journal.begin("key", resume=False)
    assert remark is not None and "--resume would have continued" in remark


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's device that is always full")  # noqa: PTH110
def test_a_full_disk(tmp_path):
    """The measurement is shown; the error says what could not be written."""
    command = [*BENCH[:-3], "--rounds", "1", "--no-roofline", "--json", "/dev/full"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "numpy" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: can't write records to /dev/full: No space left on device")


def test_a_failed_write_keeps_the_file(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"run_id": "old"}\n')

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_jsonl([{"run_id": "new"}], file)
    assert file.read_text() == '{"run_id": "old"}\n' and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's address space limit")
def test_out_of_memory_is_a_row(tmp_path):
    """Of a runtime that allocates more than there is, and of one that the system kills; others go on."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'edgeformer.measure.worker' in ' '.join(sys.orig_argv):\n"
        "    import edgeformer.runtimes.null as null, numpy, os, signal\n"
        "    from edgeformer.runtimes import torch as t\n"
        "    def grow(self, *a):\n"
        "        numpy.ones(10**15)\n"
        "    def killed(self, *a):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    null.NullSession._step = grow\n"
        "    t.TorchSession._step = killed\n"
    )
    command = [*BENCH[:6], "numpy,null,torch", "--prompt", "8", "--gen", "4", "--rounds", "1", "--threads", "1"]
    command += ["--no-roofline", "--no-twin", "--against", str(STDLIB), "--json", str(tmp_path / "rows.jsonl")]
    # the reference runs in torch as well: without it rows stay unchecked, and say so
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = {r["runtime"]: r for r in lines(tmp_path / "rows.jsonl")}
    assert "Unable to allocate" in found["null"]["error"]
    assert "status -9 (SIGKILL, as sent by Linux when memory runs out)" in found["torch"]["error"]
    assert (
        found["numpy"]["status"] == "ok"
        and "no reference: the process exited" in found["numpy"]["parity_checks"][0]["note"]
    )


def made_once(loaded, build, options, note=lambda _: None):
    with contextlib.ExitStack() as uses:
        return make(loaded, build, options, None, None, note, uses)


def test_artefacts_are_made_once(tmp_path):
    loaded = load(STDLIB)
    build = Build("onnx", "fp32", "cpu")
    first = made_once(loaded, build, {"weights": "copy"})
    stamp = (first / "model.onnx").stat().st_mtime_ns
    assert made_once(loaded, build, {"weights": "copy"}) == first
    assert (first / "model.onnx").stat().st_mtime_ns == stamp
    other = made_once(loaded, build, {"weights": "link"})
    assert other != first
    (first / "model.onnx").write_bytes(b"damaged")
    again = made_once(loaded, build, {"weights": "copy"})
    data = (first / "model.onnx.data").read_bytes()
    (first / "model.onnx.data").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])  # of the same size
    notes = []
    assert made_once(loaded, build, {"weights": "copy"}, notes.append) == first
    assert "model.onnx.data in the cache was modified after export; exporting the artefact again" in notes[0]
    assert (first / "model.onnx.data").read_bytes() == data
    bundle.check_files(again, bundle.read_manifest(again))
    assert again == first and (first / "model.onnx").stat().st_size > 1000


def test_the_cache_is_of_content(tmp_path):
    """One number in the middle of a tensor makes another key, where the samples of a digest see none."""
    loaded = load(STDLIB)
    state = {name: loaded.require_weights()[name].astype("float32") for name in loaded.require_weights()}
    save(loaded.spec, state, tmp_path / "a")
    save(loaded.spec, state, tmp_path / "same")
    changed = {name: value.copy() for name, value in state.items()}
    changed["layers.1.ffn.up.weight"][100, 77] += 1
    save(loaded.spec, changed, tmp_path / "b")
    keys = {name: cache_key(load(tmp_path / name), "onnx", {"precision": "fp32"}) for name in ("a", "same", "b")}
    assert keys["a"] == keys["same"] != keys["b"]
    assert cache_key(load(tmp_path / "a"), "onnx", {"precision": "q4"}) != keys["a"]


def test_what_is_in_use_is_not_cleaned():
    folder = cache.cache_folder("artefacts") / "Llama-3.2-1B-onnx-fp32-key"
    folder.mkdir(parents=True)
    stranger, link = folder.with_name("mine"), folder.with_name("link")
    stranger.mkdir()
    link.symlink_to(stranger)
    for shared in (False, True):
        with cache.lock_of(folder, shared=shared):
            assert cache.clean(parts=("artefacts",)) == [] and folder.exists()
    with cache.lock_of(link):
        pass  # ours, but a link: it is deleted, and not what it leads to
    assert {e.path for e in cache.clean(parts=("artefacts",))} == {folder, link}
    assert list(folder.parent.iterdir()) == [stranger]  # whoever put it there: it carries no mark
    stranger.rmdir()


def test_the_cache_is_shown_and_cleaned(tmp_path):
    made_once(load(STDLIB), Build("onnx", "fp32", "cpu"), {"weights": "copy"})
    run = [sys.executable, "-m", "edgeformer", "cache"]
    shown = json.loads(subprocess.run([*run, "--json"], capture_output=True, text=True, check=True).stdout)
    (entry,) = shown["entries"]
    assert entry["part"] == "artefacts" and entry["bytes"] == shown["bytes"] > 20_000_000
    kept = subprocess.run([*run, "--clean", "--older-than", "1"], capture_output=True, text=True, check=True)
    assert kept.stdout.startswith("0 entries") and len(cache.entries()) == 1
    gone = subprocess.run([*run, "--clean"], capture_output=True, text=True, check=True)
    assert gone.stdout.splitlines()[-1].startswith("1 entries, ") and cache.entries() == []
    wrong = subprocess.run([*run, "--part", "cellar"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "its parts are artefacts, kernels, runs, models, web" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP])
def test_workers_end_with_their_parent(how, tmp_path):
    """Also in the middle of a round; what it left among the temporary folders goes with the next run."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the child inherits it, and under nohup it is ignored
    process = subprocess.Popen(BENCH, stderr=subprocess.PIPE, text=True, env=environment)
    signal.signal(signal.SIGHUP, before)
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("round "))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert any("edgeformer.measure.worker" in " ".join(w.cmdline()) for w in workers)
    os.kill(process.pid, how)
    process.wait()
    process.stderr.close()
    _, alive = psutil.wait_procs(workers, timeout=3)
    assert not alive
    (left,) = tmp_path.glob("edgeformer-*")
    subprocess.run(BENCH, capture_output=True, env=environment, check=True)
    assert not left.exists() and not list(tmp_path.glob("edgeformer-*"))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_in_a_long_call_ends_with_its_parent(tmp_path):
    """Also where `sh` is dash, whose `kill` takes other arguments; the worker itself notices nothing during a call."""
    code = (
        "import sys; from edgeformer.measure.process import WorkerProcess\n"
        "worker = WorkerProcess(1); print(worker.pid, flush=True)\n"
        "worker.ask('rates', 120, 120, threads=1, sizes=[10**9] * 5)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    until = time.monotonic() + 30
    while worker.cpu_times().user < 2.0 and time.monotonic() < until:  # its imports are over, and it measures
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 1.5  # nobody may have waited for it yet: what counts is that it runs no more
    while _runs(worker):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_finished_output_is_not_written_to_by_the_next_run(tmp_path):
    """A run that was killed between its success and its cleaning leaves a file with two names; another format comes next."""
    from edgeformer.quantization.partial import PartialFile

    entries = {"a": (np.dtype(np.uint8), (4,))}
    first = PartialFile(tmp_path / "scratch", entries, "q4")
    first.write({"a": np.arange(4, dtype=np.uint8)})
    os.link(first.file, tmp_path / "output")
    before = (tmp_path / "output").read_bytes()
    for identity in ("q8", "q4"):
        again = PartialFile(tmp_path / "scratch", entries, identity)
        again.write({"a": np.zeros(4, np.uint8)})
        assert (tmp_path / "output").read_bytes() == before


def test_a_line_that_was_cut_is_written_again(tmp_path):
    from edgeformer.quantization.partial import JOURNAL, PartialFile

    entries = {name: (np.dtype(np.uint8), (1,)) for name in ("first", "second", "third")}
    begun = PartialFile(tmp_path, entries, "q4")
    begun.write({"first": np.ones(1, np.uint8)})
    begun.write({"second": np.ones(1, np.uint8)})
    journal = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(journal[:-3])
    again = PartialFile(tmp_path, entries, "q4")
    assert again.done == {"first"}
    again.write({"second": np.ones(1, np.uint8), "third": np.ones(1, np.uint8)})
    assert again.complete() == entries.keys()
