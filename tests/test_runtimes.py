"""The protocol's checks, parity verdicts that can fail, and generation."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from support import STDLIB, random_ids, run_cached, saved, small_spec

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ArtefactError, InputError, RuntimeUnavailable
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.generate import stream_ids, stream_text
from edgeformer.inference.inputs import check_no_hole
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.ops.sampling import Sampling, choose
from edgeformer.runtimes.numpy import NumpySession
from edgeformer.verification import parity
from edgeformer.verification.reference import Reference, greedy


@pytest.fixture(scope="module")
def loaded():
    return load(STDLIB)


@pytest.fixture(scope="module")
def artefact(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtimes") / "onnx"
    export_onnx(loaded, folder)
    return folder


@pytest.fixture
def session(artefact):
    return require("onnxruntime")[0].open(artefact, Options(threads=1, capacity=64))


@pytest.mark.parametrize("bad", [4096, -1, 10**9])
@pytest.mark.parametrize("name", ["onnxruntime", "numpy", "null"])
def test_an_id_outside_the_vocabulary(name, bad, loaded, artefact):
    runtime, _ = require(name)
    session = runtime.open(artefact if runtime.opens == "onnx" else loaded, Options(capacity=16))
    with pytest.raises(InputError, match=f"token id {bad} is outside the vocabulary of 4096"):
        session.forward(np.array([[1, bad]]))


def test_longer_than_the_cache(session):
    session.forward(random_ids(4096, 1, 60))
    with pytest.raises(InputError, match=r"60 \+ 5 tokens do not fit: the cache holds 64"):
        session.forward(random_ids(4096, 1, 5))
    session.forward(random_ids(4096, 1, 4))  # the refused call changed nothing


def test_wrong_batch(session):
    with pytest.raises(InputError, match="opened for batches of 1, got 2"):
        session.forward(random_ids(4096, 2, 3))


def test_unknown_runtime_and_variant():
    with pytest.raises(RuntimeUnavailable, match="there is no runtime 'tpu'; runtimes are"):
        get("tpu")
    with pytest.raises(RuntimeUnavailable, match="its variants are: torch:compile"):
        get("torch:magic")


def test_a_missing_package_gives_the_install_line(monkeypatch):
    runtime, _ = get("ort_genai")
    monkeypatch.setattr(type(runtime), "packages", ("no-such-distribution",))
    with pytest.raises(RuntimeUnavailable, match=r'pip install "edgeformer\[ort-genai\]"'):
        require("ort_genai")


def test_an_unknown_provider(artefact):
    with pytest.raises(RuntimeUnavailable, match="no variant 'abacus'"):
        require("onnxruntime:abacus")
    with pytest.raises(RuntimeUnavailable, match="this onnxruntime has no cuda provider"):
        require("onnxruntime")[0].open(artefact, Options(variant="cuda"))


@pytest.mark.parametrize(
    ("mask", "fine"),
    [("1111", True), ("0011", True), ("1100", True), ("0110", True), ("1011", False), ("0101", False), ("1001", False)],
)
def test_holes(mask, fine):
    row = np.array([[int(c) for c in mask]])
    if fine:
        check_no_hole(row)
    else:
        with pytest.raises(InputError):
            check_no_hole(row)


def test_compiled_torch_decodes_like_numpy(tmp_path):
    """The variant `torch:compile`: whole buffers, a mask over them, padded on the left."""
    pytest.importorskip("torch")
    loaded, _ = saved(small_spec(), tmp_path / "m")
    ids, valid = random_ids(31, 2, 12), np.ones((2, 12), np.int64)
    valid[1, :3] = 0
    expected = run_cached(NumpySession(loaded, Options(batch=2)), ids, valid, 8)
    session = require("torch:compile")[0].open(loaded, Options(batch=2, capacity=16, variant="compile"))
    logits = run_cached(session, ids, valid, 8)
    assert np.abs(logits - expected)[valid.astype(bool)].max() <= tolerances.LAYER


# ---------------------------------------------------------------------------------------------------------- verdicts


def test_a_right_artefact_passes_and_the_verdict_stays_with_it(loaded, artefact):
    verdict = parity.verify(artefact, loaded, length=40, generate=16)
    assert verdict.verdict == parity.PASS and [c.name for c in verdict.checks][:3] == ["full", "cached", "greedy"]
    assert bundle.read_manifest(artefact)["verdict"]["verdict"] == "pass"


def corrupt(folder, name, change):
    """Change one tensor inside an artefact's data file."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    place = {e.key: e.value for e in tensor.external_data}
    with (folder / place["location"]).open("r+b") as f:
        f.seek(int(place["offset"]))
        data = np.frombuffer(f.read(int(place["length"])), np.float32).copy()
        change(data)
        f.seek(int(place["offset"]))
        f.write(data.tobytes())


@pytest.mark.parametrize("name", ["layers.3.attention.o.weight", "layers.0.ffn_norm.weight", "rotary.0.sin"])
def test_one_wrong_tensor_fails(name, loaded, tmp_path):
    export_onnx(loaded, tmp_path / "m")
    corrupt(tmp_path / "m", name, lambda w: np.negative(w, out=w))
    verdict = parity.verify(tmp_path / "m", loaded, length=40, generate=8)
    assert verdict.verdict == parity.FAIL


def test_one_slightly_wrong_weight_fails(loaded, tmp_path):
    """A single weight of five million, off by a half, is beyond the fp32 limit."""
    export_onnx(loaded, tmp_path / "m")

    def nudge(w):
        w[1000] += 0.5

    corrupt(tmp_path / "m", "layers.2.ffn.down.weight", nudge)
    assert parity.verify(tmp_path / "m", loaded, length=60, generate=4).verdict == parity.FAIL


def test_not_a_number_fails(loaded, tmp_path):
    export_onnx(loaded, tmp_path / "m")
    corrupt(tmp_path / "m", "layers.5.ffn.down.weight", lambda w: w.fill(np.nan))
    checks = parity.verify(tmp_path / "m", loaded, length=20, generate=4).checks
    assert checks[0].verdict == parity.FAIL and "not finite" in checks[0].note


def test_another_architecture_is_refused(artefact):
    with pytest.raises(ArtefactError, match="was made from another architecture"):
        parity.verify(artefact, load("smollm2-135m"))


def test_near_ties():
    logits = np.zeros((1, 5, 4), np.float32)
    tokens, margins = np.array([[1, 2, 3]]), np.array([[1.0, 1e-6, 1.0]])
    reference = Reference("numpy", np.arange(5)[None], logits, 0, 2, 2, tokens, margins)
    assert parity.compare_tokens(np.array([[1, 2, 3]]), reference, "fp32").verdict == parity.PASS
    assert parity.compare_tokens(np.array([[1, 0, 0]]), reference, "fp32").verdict == parity.NEAR_TIE
    check = parity.compare_tokens(np.array([[0, 2, 3]]), reference, "fp32")
    assert check.verdict == parity.FAIL and check.first_divergence == 0


def test_kl_divergence():
    p = np.array([[0.0, np.log(3.0)]])  # 1/4, 3/4
    q = np.array([[0.0, 0.0]])
    assert parity.kl_divergence(p, p) == 0
    assert abs(parity.kl_divergence(p, q) - (0.25 * np.log(0.5) + 0.75 * np.log(1.5))) < 1e-12


# ---------------------------------------------------------------------------------------------------------- generation


def test_sampling_follows_its_rules():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    assert choose(logits, Sampling(), rng) == 0

    def seen(sampling):
        return {choose(logits, sampling, rng) for _ in range(400)}

    assert seen(Sampling(temperature=1.0)) == {0, 1, 2, 3}
    assert seen(Sampling(temperature=1.0, top_k=2)) == {0, 1}
    assert seen(Sampling(temperature=1.0, top_p=0.75)) == {0, 1}
    assert seen(Sampling(temperature=1.0, min_p=0.2)) == {0, 1, 2}
    counts = np.bincount([choose(logits, Sampling(temperature=1.0), rng) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    with pytest.raises(InputError, match="top_p must lie in"):
        Sampling(top_p=1.5)


def test_generation_is_the_models_greedy_sequence(loaded, session):
    prompt = read_tokenizer(STDLIB).encode("def main(")
    ours = list(stream_ids(session, prompt, 20, Sampling()))
    expected = greedy(NumpySession(loaded, Options(capacity=64)), np.array([prompt]), 20)[0][0]
    assert ours == list(expected)
    stop = ours[7]
    assert list(stream_ids(session, prompt, 20, Sampling(), frozenset([stop]))) == ours[: ours.index(stop)]


def test_the_cache_bounds_generation(session):
    with pytest.raises(InputError, match="exceed the 64 positions"):
        next(stream_ids(session, [1] * 60, 10, Sampling()))
    with pytest.raises(InputError, match="no tokens"):
        next(stream_ids(session, [], 10, Sampling()))


def test_multi_byte_characters_are_not_broken():
    tokenizer = read_tokenizer(STDLIB)
    text = "naïve 🙂 日本"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text.split())
    pieces = list(stream_text(tokenizer, iter(ids)))
    assert "".join(pieces) == tokenizer.decode(ids) and not any("�" in p for p in pieces)
