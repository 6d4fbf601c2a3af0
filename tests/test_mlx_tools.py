"""Counting launches, tuning, mac-check, races: what runs here of them, and that the rest says why it doesn't."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from family_cases import TINY
from support import STDLIB, load_tiny, saved, small_spec

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

from metal_emulator import checks, program  # noqa: E402

from edgeformer.backends.mlx import launches, metal  # noqa: E402
from edgeformer.backends.mlx.load import load_model  # noqa: E402
from edgeformer.backends.mlx.metal import _choice  # noqa: E402
from edgeformer.backends.mlx.metal._tune import Tuning, tune  # noqa: E402
from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.errors import InputError, RuntimeUnavailable  # noqa: E402
from edgeformer.exporters.mlx.exporter import stock_of  # noqa: E402
from edgeformer.inference.lookup import require  # noqa: E402
from edgeformer.inference.runtime import Options  # noqa: E402
from edgeformer.measure import mac  # noqa: E402
from edgeformer.measure.race import race  # noqa: E402


def edgeformer(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "edgeformer", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_launches_of_a_llama_layer():
    """12 without custom kernels, 9 with; mlx-lm's 17, counted the same way: norm, q, k, v, two rotations, two cache writes,
    attention, o, add, norm, gate, up, activation, down, add."""
    spec = load("smollm2-135m").spec
    kernels = {name: metal.get(name) for name in metal.names()}
    for bits in (None, 4):
        product = "Matmul" if bits is None else "QuantizedMatmul"
        lean = launches.ours(spec, bits=bits)
        assert lean.per_layer == {
            "rms_norm": 2, product: 4, "rope": 1, "DynamicSliceUpdate": 1, "scaled_dot_product_attention": 1, "elementwise": 3,
        }  # fmt: skip
        assert launches.ours(spec, kernels=kernels, bits=bits).layer() == 9
        theirs = launches.mlx_lms(stock_of(spec), bits=bits)
        assert theirs.per_layer == {
            "rms_norm": 2, product: 7, "rope": 2, "SliceUpdate": 2, "scaled_dot_product_attention": 1, "elementwise": 3,
        }  # fmt: skip
        assert lean.step(30) == 30 * 12 + sum(lean.rest.values())


def test_launches_after_thousands_of_weights_that_were_never_evaluated():
    """MLX records a function by recursion along the chain of random keys: the process ended with a stack overflow."""
    program = (
        "import mlx.core as mx\n"
        "from edgeformer.backends.mlx import launches\n"
        "from edgeformer.checkpoint.loading import load\n"
        "for _ in range(100_000): mx.random.normal((1,))\n"
        "print(launches.ours(load('smollm2-135m').spec).layer())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "12\n", (done.returncode, done.stderr[-500:])


def test_launches_with_head_norms(tmp_path):
    loaded, _ = load_tiny(tmp_path, "qwen3", **TINY | {"head_dim": 64})
    kernels = {name: metal.get(name) for name in metal.names()}
    assert launches.ours(loaded.spec).layer() == 14
    assert launches.ours(loaded.spec, kernels=kernels).layer() == 9
    assert launches.mlx_lms(stock_of(loaded.spec)).layer() == 19


def test_elementwise_chains_count_once_unless_something_lies_between():
    def chain(token, start):
        return [mx.tanh(token.astype(mx.float32) * 2 + 1)]

    def two(token, start):
        x = token.astype(mx.float32) + 1
        return [x + mx.softmax(x, -1)]  # the second sum needs a result of the first

    assert launches.record(chain) == ["elementwise"]
    assert launches.record(two) == ["elementwise", "Softmax", "elementwise"]
    assert mx.fast.rms_norm(mx.ones(4), None, 0.0).tolist() == [1.0] * 4  # the placeholders are gone


def test_the_launches_command(tmp_path):
    made = json.loads(edgeformer("launches", STDLIB, "--json").stdout)
    assert {name: c["layer"] for name, c in made["counts"].items()} == {
        "ours": 12,
        "ours, Metal kernels": 9,
        "mlx-lm": 17,
    }
    assert "per layer" in edgeformer("launches", STDLIB).stdout
    saved(small_spec(softcap=2.0), tmp_path / "m")
    done = edgeformer("launches", tmp_path / "m", "--json")
    assert "no model type of mlx-lm" in done.stderr and "mlx-lm" not in json.loads(done.stdout)["counts"]
    load_tiny(tmp_path / "bert", "bert", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=50)
    assert "no decode step" in edgeformer("launches", tmp_path / "bert", code=2).stderr


@pytest.mark.skipif(program.available() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tuning_refuses_a_kernel_that_is_wrong(precision, tmp_path):
    """A kernel whose answers differ is not chosen, however fast; measured with emulated kernels."""
    loaded, _ = saved(small_spec(), tmp_path)
    model = load_model(loaded.spec, loaded.weights, precision)
    model.pack()
    source = (
        metal.get("rope_pack").source().replace("out[i] = in[i]", "out[i] = T(float(in[i]) * 1.2f)")
    )  # values alone
    kernels = {
        "add_rms_norm": checks.emulated("add_rms_norm"),
        "rope_pack": checks.emulated("rope_pack", source=source),
    }
    made = tune(model, kernels, compiled=False, prompt=4, steps=2, rounds=2)
    assert made.wrong == ["rope_pack"] and made.errors["rope_pack"] > made.errors["add_rms_norm"]
    assert len(made.ratios["add_rms_norm"]) == 2 and "rope_pack" not in made.ratios
    assert made.chosen == [] and model.ops.kernels == {}  # emulation is slow


def test_what_was_tuned_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFORMER_TUNING", str(tmp_path / "deep" / "choice.json"))
    abc = _choice.subject("abc", {"BF16", "AFFINE4G64"}, "bf16")
    assert abc == "abc AFFINE4G64 bf16" and _choice.choose("", abc) == {}
    _choice.save(abc, Tuning(chosen=["add_rms_norm", "gone"]).as_dict())
    _choice.save("other", Tuning().as_dict())
    assert _choice.choose("", abc) == {}  # no Metal here
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert list(_choice.choose("", abc)) == ["add_rms_norm"]
    assert _choice.choose("", _choice.subject("abc", {"BF16"}, "bf16")) == {} and _choice.choose("ops", abc) == {}
    assert sorted(_choice.choose("kernels", abc)) == metal.names()
    (tmp_path / "deep" / "choice.json").write_text("not json")
    assert _choice.choose("", abc) == {}


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a GPU")
def test_without_metal():
    for command in (("tune", STDLIB), ("mac-check", STDLIB)):
        assert "needs an Apple GPU" in edgeformer(*command, code=2).stderr
    with pytest.raises(RuntimeUnavailable, match="no Apple GPU"):
        require("torch:mps")[0].open(load(STDLIB), Options(variant="mps"))


def test_mac_check_runs_what_it_can(tmp_path):
    """Parity and generation here; on a Mac the same command runs the rest."""
    file = tmp_path / "record.json"
    parts = "kernels,parity,generation" if not mx.metal.is_available() else "parity,generation"
    done = edgeformer("mac-check", STDLIB, "-o", file, "--anywhere", "--rounds", "1", "--parts", parts)
    record = json.loads(file.read_text())
    assert record["parts"]["parity"]["status"] == record["parts"]["generation"]["status"] == "ok"
    assert {v["verdict"] for v in record["parts"]["parity"]["verdicts"]} == {"pass"}
    results = record["parts"]["generation"]["results"]["4bit"]
    assert results["mlx"]["tokens"] == results["mlx_lm"]["tokens"] and len(results["mlx"]["tokens"]) == 128
    if not mx.metal.is_available():
        assert record["parts"]["kernels"] == {"status": "skipped", "reason": "no Metal on this machine"}
        assert "kernels: skipped (no Metal" in done.stdout
    assert "--parts has nonsense" in edgeformer("mac-check", STDLIB, "--parts", "nonsense", code=2).stderr


def test_mac_check_keeps_what_breaks(monkeypatch):
    monkeypatch.setattr(mac, "check_parity", lambda *_: 1 / 0)
    record = mac.mac_check(load(STDLIB), parts=("parity",), anywhere=True)
    assert (
        record["parts"]["parity"]["status"] == "error" and "ZeroDivisionError" in record["parts"]["parity"]["traceback"]
    )
    assert mac.failed(record) == ["parity"]


def test_kernel_cases_of_the_record(monkeypatch):
    """The part that a Mac runs, with the emulator as its GPU: every case counted, a broken kernel found."""
    if program.available() is not None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(metal, "names", lambda: ["add_rms_norm"])
    kernel = checks.emulated("add_rms_norm")
    monkeypatch.setattr(metal, "get", lambda name: kernel)
    made = mac.check_kernels()
    assert made["status"] == "ok" and len(made["cases"]) == 18 and max(c["error"] for c in made["cases"]) <= 1
    kernel.launch = lambda **_: 1 / 0
    assert mac.check_kernels()["wrong"] == 18


def test_race(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path)
    sessions = {n: require(n)[0].open(loaded, Options(capacity=32)) for n in ("numpy", "mlx")}
    laps = race(sessions, [1, 2, 3], 10, 2)
    assert [len(of) for of in laps.values()] == [2, 2]
    assert laps["numpy"][0].tokens == laps["mlx"][1].tokens and laps["mlx"][0].decode_rate() > 0


def test_generate_with_mlx(tmp_path):
    """The command over checkpoints and folders, by both runtimes: the same text."""
    edgeformer("export", STDLIB, "-o", tmp_path / "m", "--to", "mlx", "--precision", "fp32")
    made = [
        edgeformer("generate", *arguments, "-p", "def main(", "-n", "12").stdout
        for arguments in ((STDLIB, "--runtime", "mlx"), (STDLIB, "--runtime", "mlx_lm"), (tmp_path / "m",), (STDLIB,))
    ]
    assert len(set(made)) == 1 and made[0].startswith("def main(")
    done = edgeformer("generate", tmp_path / "m", "--runtime", "onnxruntime", "-p", "def main(", "-n", "12")
    assert done.stdout == made[0]  # an artefact for another runtime is a MODEL, too


def test_compare_has_rows_of_both(tmp_path):
    short = ("--prompt", "16", "--gen", "4", "--rounds", "1")
    done = edgeformer("compare", STDLIB, *short, "--runtime", "mlx,mlx_lm", "--json", "-")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["backends"] for r in rows} == {"mlx", "mlx_lm"}


def test_compare_in_other_precisions(tmp_path):
    short = ("--prompt", "16", "--gen", "4", "--rounds", "1")
    done = edgeformer("compare", STDLIB, *short, "--precisions", "4bit", "--runtime", "onnxruntime", code=2)
    assert "onnxruntime runs no 4bit export of this model; add fp32, or leave onnxruntime out" in done.stderr
    done = edgeformer("compare", STDLIB, *short, "--precisions", "4bit", "--runtime", "mlx", "--json", "-")
    assert {json.loads(line)["precision"] for line in done.stdout.splitlines()} == {"4bit-g64"}
    load_tiny(tmp_path / "bert", "bert", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=50)
    both = ("compare", tmp_path / "bert", *short, "--runtime", "onnxruntime,mlx", "--json", "-", "--precisions")
    done = edgeformer(*both, "bf16", code=2)
    assert "mlx runs no bf16 export of this model" in done.stderr
    done = edgeformer(*both, "fp32,bf16")
    assert "note: no rows for mlx in bf16" in done.stderr
    assert {json.loads(line)["runtime"] for line in done.stdout.splitlines()} == {"onnxruntime", "mlx"}


def test_mlx_lm_refuses_padding_and_encoders(tmp_path):
    edgeformer("export", STDLIB, "-o", tmp_path / "m", "--to", "mlx")
    session = require("mlx_lm")[0].open(tmp_path / "m", Options(capacity=32))
    import numpy as np

    with pytest.raises(InputError, match="without padding"):
        session.forward(np.ones((1, 4), np.int64), np.array([[0, 1, 1, 1]]))
    load_tiny(tmp_path / "bert", "bert", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=50)
    spec = load(tmp_path / "bert").spec
    assert "does not run feature-extraction" in require("mlx_lm")[0].refuses(spec, Options())
