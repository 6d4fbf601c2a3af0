"""T3: encoder–decoder families against transformers: one pass, a cached run, padded texts, gradients.

Oracle: transformers in float32, on each text's real tokens alone.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from click.testing import CliRunner
from encoder_cases import ENCODER_DECODERS, pair_settings
from support import load_tiny, random_ids, record_errors, run_cached, sessions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeformer.api import build_mlx, build_torch, export  # noqa: E402
from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.cli import cli  # noqa: E402
from edgeformer.errors import InputError  # noqa: E402
from edgeformer.inference.lookup import require  # noqa: E402
from edgeformer.inference.runtime import Options  # noqa: E402
from edgeformer.measure import table  # noqa: E402
from edgeformer.measure.bench import bench  # noqa: E402
from edgeformer.measure.machine import facts  # noqa: E402
from edgeformer.measure.record import records  # noqa: E402
from edgeformer.measure.settings import Settings  # noqa: E402
from edgeformer.quantization.run import quantize  # noqa: E402

READ, WRITTEN, PREFILL = 60, 160, 100
PAIRS = [(model_type, name) for model_type, cases in ENCODER_DECODERS.items() for name in cases]


def tiny(folder, model_type, case):
    config = pair_settings(model_type, ENCODER_DECODERS[model_type][case])
    return load_tiny(folder, model_type, auto="AutoModelForSeq2SeqLM", **config)


@pytest.mark.parametrize(("model_type", "case"), PAIRS)
def test_encoder_decoder(model_type, case, tmp_path):
    loaded, hf = tiny(tmp_path / "hf", model_type, case)
    read, written = random_ids(80, 2, READ) + 10, random_ids(80, 2, WRITTEN, seed=1) + 10
    valid = np.ones_like(read)
    valid[1, READ - 11 :] = 0
    expected = []
    for row in range(2):
        with torch.no_grad():
            ids = torch.from_numpy(read[row, valid[row].astype(bool)][None])
            out = hf(input_ids=ids, decoder_input_ids=torch.from_numpy(written[row][None]))
        expected.append(out.logits[0].numpy())
    expected = np.stack(expected)
    errors: dict[str, float] = {}
    for name, session in sessions(loaded, tmp_path, batch=2).items():
        session.source(read, valid)  # the second text has padding on the right
        whole = session.forward(written, all_positions=True)
        cached = run_cached(session, written, None, PREFILL)
        for how, logits in (("uncached", whole), ("cached", cached)):
            for row, kind in enumerate((how, "right-padded")):
                worst = float(np.abs(logits[row] - expected[row]).max())
                errors[f"{name} {kind}"] = max(errors.get(f"{name} {kind}", 0.0), worst)
                assert worst <= tolerances.FAMILY, f"{name}, {how}, row {row}: {worst:.2e}"
    record_errors("families", f"{model_type}@{case}", errors)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "q8"])
def test_exported_verified_and_generated_from(precision, tmp_path):
    """Oracle of the text: transformers' greedy search."""
    sizes = dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    hf = load_tiny(tmp_path / "hf", "t5", auto="AutoModelForSeq2SeqLM", **sizes)[1]
    source, out = str(tmp_path / "hf"), str(tmp_path / "onnx")
    run = CliRunner().invoke
    assert run(cli, ["export", source, "-o", out, "--precision", precision]).exit_code == 0
    verified = run(cli, ["verify", out, "--against", source, "--length", "40", "--gen", "12", "--json"])
    assert verified.exit_code == 0 and json.loads(verified.output)["verdict"] == "pass"
    if precision == "fp32":
        read = random_ids(80, 9) + 10
        with torch.no_grad():
            theirs = hf.generate(torch.from_numpy(read[None]), max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:]
        for model in (source, out):
            made = run(cli, ["generate", model, "--ids", ",".join(map(str, read)), "-n", "12", "--json"])
            ours = json.loads(made.output)["ids"]
            assert ours == theirs.tolist()[: len(ours)] and ours


def test_what_is_not_done_is_said(tmp_path):
    tiny(tmp_path / "hf", "t5", "plain")
    said = CliRunner().invoke(cli, ["launches", str(tmp_path / "hf")])
    assert said.exit_code == 1 and "no decode step" in str(said.exception), said.output


def test_rows_of_a_benchmark(tmp_path):
    """Each row encodes two texts and decodes their answers; its outputs are compared with the reference's. Wrong weights fail."""
    loaded = tiny(tmp_path / "hf", "t5", "plain")[0]
    export(loaded, tmp_path / "onnx")
    settings = Settings(prompts=(20,), gens=(6,), batches=(2,), rounds=2, threads=1, depths=(4,))
    runtimes = ["onnxruntime", "numpy", "transformers"]
    sources = [str(tmp_path / "onnx"), str(tmp_path / "hf")]
    spec, done = bench(sources, runtimes=runtimes, settings=settings)
    assert {row.plan.runtime for row in done.rows} == set(runtimes) and any("depths" in note for note in done.notes)
    for row in done.rows:
        assert row.verdict == "pass" and [len(r["decode_ns"]) for r in row.rounds] == [6, 6], row.error
        assert all(0 < r["encode_ns"][0] < r["prefill_ns"][0] for r in row.rounds)
    assert len({str(row.rounds[0]["tokens"]) for row in done.rows}) == 1
    header, body = table.lines(done, spec.task)
    assert header[3:8] == ["shape", "encode tok/s", "decode tok/s", "ITL ms p50/p90", "first token ms"]
    assert len(body) == 4 and body[0][3] == "20+6 ×2"
    told = [r for r in records(done, spec, machine=facts(), settings=settings, name="t5") if r["n_prompt"]]
    assert all(0 < r["encode_ms"] < r["ttft_warm_ms"] and r["bound_ns"] is None for r in told)
    other = tiny(tmp_path / "other", "t5", "gated-unscaled")[0]
    with pytest.raises(InputError, match="one architecture"):
        bench([str(tmp_path / "hf"), str(tmp_path / "other")], settings=settings)
    assert other.spec != loaded.spec


@pytest.mark.parametrize("precision", ["fp32", "q4"])
def test_both_graphs_link_to_the_checkpoint(precision, tmp_path):
    """Nothing is copied; the weights of both graphs are the checkpoint's. Oracle: our numpy back end on it."""
    sizes = dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    loaded, _ = load_tiny(tmp_path / "hf", "t5", auto="AutoModelForSeq2SeqLM", **sizes)
    if precision == "q4":
        quantize(loaded, tmp_path / "q", method="rtn")
        loaded = load(tmp_path / "q")
    export(loaded, tmp_path / "o", weights="link")
    files = {file.name for file in (tmp_path / "o").iterdir()}
    assert "model.safetensors" in files and not any(name.endswith(".data") for name in files)
    read, written = random_ids(80, 1, 20) + 10, random_ids(80, 1, 12, seed=1) + 10
    found = []
    for name, model in (("numpy", loaded), ("onnxruntime", tmp_path / "o")):
        session = require(name)[0].open(model, Options(capacity=12))
        session.source(read, np.ones_like(read))
        found.append(run_cached(session, written, None, 8))
    assert np.abs(found[0] - found[1]).max() <= tolerances.FAMILY
    again = load(tmp_path / "o").require_weights()
    assert all(np.array_equal(again[name], loaded.require_weights()[name]) for name in again)


@pytest.mark.parametrize("backend", ("torch", "mlx"))
def test_a_call_without_an_answer_is_refused(backend, tmp_path):
    loaded, _ = tiny(tmp_path / "hf", "t5", "plain")
    if backend == "torch":
        model, ids = build_torch(loaded.spec), torch.ones((1, 4), dtype=torch.long)
    else:
        mx = pytest.importorskip("mlx.core")
        model, ids = build_mlx(loaded.spec), mx.ones((1, 4), dtype=mx.int32)
    with pytest.raises(InputError, match="needs decoder_input_ids"):
        model(ids)


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_gradients_against_transformers(model_type, tmp_path):
    loaded, hf = tiny(tmp_path / "hf", model_type, "plain")
    read, written = (torch.from_numpy(random_ids(80, 2, n, seed=n)) + 10 for n in (20, 30))

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), written.flatten())

    hf = hf.double()  # in float32, rounding alone is as large as a small tensor's tolerance on some CPUs
    loss(hf(input_ids=read, decoder_input_ids=written).logits).backward()
    with torch.no_grad():
        for p in hf.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    hf.float().save_pretrained(tmp_path / "gradients")
    expected = load(tmp_path / "gradients").require_weights()
    model = build_torch(loaded).double().eval()
    loss(model(read, None, written)).backward()
    largest = max(np.abs(x).max() for name, x in expected.items() if name != "head_bias")
    for name, p in model.named_parameters():
        if name == "head_bias":  # transformers doesn't train it
            continue
        assert p.grad is not None, name
        scale = max(np.abs(expected[name]).max(), 1e-3 * largest if name.endswith(".k.bias") else 0)
        assert np.abs(p.grad.numpy() - expected[name]).max() <= tolerances.GRADIENT * scale, name
