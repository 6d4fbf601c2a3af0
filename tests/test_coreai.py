"""Bundles for Apple's Core AI: the same bits, the contract of Apple's runner, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tolerances
from component_cases import COMPONENTS, ENCODERS
from support import STDLIB, random_ids, saved, small_spec

import edgeformer
from edgeformer.advise.rules.coreai import remarks
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ArtefactError, CheckpointError, ExportError, InputError, RuntimeUnavailable
from edgeformer.exporters.coreai import package
from edgeformer.exporters.coreai.contract import check_bundle
from edgeformer.exporters.coreai.exporter import export_coreai
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope
from edgeformer.measure.settings import Settings
from edgeformer.spec import layers
from edgeformer.weights.formats import QUANTIZED, dequantize, quantize
from edgeformer.weights.mlir_file import read_asset, read_blobs

needs_coreai = pytest.mark.skipif(package.missing() is not None, reason=str(package.missing()))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle per precision, made when first asked for."""
    folder, done = tmp_path_factory.mktemp("coreai"), {}

    def make(precision):
        if precision not in done:
            done[precision] = export_coreai(load(STDLIB), folder / precision, precision=precision)
        return done[precision]

    return make


@needs_coreai
@pytest.mark.parametrize("precision", ["fp32", "q8", "q4", "bf16"])
def test_verified_in_apples_runtime(precision, made):
    """Against the same bits in float64, prefill and cached; the weights are read back from the asset."""
    done = edgeformer.verify(made(precision).folder, STDLIB, runtime="coreai", length=48, generate=24)
    assert done.verdict == "pass", done
    limits = {check.name: check.max_abs for check in done.checks if check.name in ("full", "cached")}
    assert max(limits.values()) <= 1e-4


@needs_coreai
def test_two_hundred_greedy_tokens(made):
    """The oracle: the numpy back end's own generation."""
    from edgeformer.ops.sampling import Sampling

    sessions = [
        require("coreai")[0].open(made("fp32").folder, Options(capacity=256)),
        require("numpy")[0].open(load(STDLIB), Options(capacity=256)),
    ]
    greedy = Sampling(temperature=0.0)
    found, expected = (list(s.tokens([5, 17, 99, 3], 200, greedy)) for s in sessions)
    assert found == expected


@needs_coreai
@pytest.mark.parametrize("precision", ["fp16", "q4f16", "q8f16"])
def test_half_precision(precision, tmp_path):
    """fp16 arithmetic on a small model: the Linux interpreter sums in fp16, and takes minutes for a large one."""
    loaded, weights = saved(small_spec(), tmp_path / "s")
    keep = ["*.ffn.down.weight"] if precision[:2] in QUANTIZED else []  # 24 inputs are no whole groups
    export_coreai(loaded, tmp_path / "m", precision=precision, keep=keep)
    reference = {k: v.astype(np.float16).astype(np.float64) for k, v in weights.items()}
    if precision[:2] in QUANTIZED:
        form = QUANTIZED[precision[:2]]
        for name, w in weights.items():
            if w.ndim == 2 and not w.shape[1] % 32:
                reference[name] = dequantize(*quantize(w, form), form)
    ids = random_ids(31, 1, 12)
    from edgeformer.backends.numpy import NumpyModel

    expected = NumpyModel(loaded.spec, reference, np.float64)(ids)[0]["logits"]
    session = require("coreai")[0].open(tmp_path / "m", Options(capacity=16))
    found = session.forward(ids, all_positions=True)
    assert found.dtype == np.float32 and session.facts()["kv"] == "fp16"
    assert np.abs(found - expected).max() <= tolerances.FP16 * max(1.0, np.abs(expected).max())


@needs_coreai
@pytest.mark.parametrize("precision", ["q4", "q8", "q4f16"])
def test_the_same_codes(precision, made):
    """Codes and scales of every tensor, read from the file without Core AI, are those of rounding to nearest."""
    folder, form = made(precision).folder, QUANTIZED[precision[:2]]
    held = read_asset(folder / "stdlib-5m.aimodel")
    weights = load(STDLIB).weights
    assert held.keys() == set(weights)
    seen = 0
    for name, tensor in held.items():
        if tensor.dtype.lower() in QUANTIZED:
            codes, scales = quantize(np.asarray(weights[name]).astype(np.float32), form)
            found = tensor.quantized()
            assert np.array_equal(found[0], codes) and np.array_equal(found[1], scales), name
            seen += 1
    assert seen > 20


@needs_coreai
def test_a_bundle_is_a_model_again(made):
    """Its own weights, tokenizer and ids: `export` reads it, and so does every runtime that opens checkpoints."""
    again = load(made("q4").folder)
    assert again.quantization["method"] == "rtn"
    ids = random_ids(4096, 1, 10)
    a = require("numpy")[0].open(again, Options()).forward(ids)
    b = require("coreai")[0].open(made("q4").folder, Options(capacity=16)).forward(ids)
    assert np.abs(a - b).max() <= 1e-4
    assert (
        edgeformer.export(again.folder, made("q4").folder.with_name("onnx"), precision="q4").manifest["precision"]
        == "q4"
    )


_RULES = {
    "metadata_version": "0.1", "kind": "vlm", "name": 3, "assets": {}, "language": [],
    "language.tokenizer": None, "language.vocab_size": "4096", "language.max_context_length": 0,
    "language.embedded_tokenizer": "yes", "language.function_map": {"main": ["other"]}, "assets.main": "../x.aimodel",
}  # fmt: skip


@needs_coreai
@pytest.mark.parametrize("field", _RULES)
def test_a_changed_bundle_names_the_field(field, made, tmp_path):
    shutil.copytree(made("fp32").folder, tmp_path / "b")
    file = tmp_path / "b" / "metadata.json"
    for value in (_RULES[field], None) if "." not in field else (_RULES[field],):
        data = json.loads(file.read_text())
        *path, last = field.split(".")
        place = data
        for name in path:
            place = place[name]
        place[last] = value
        if value is None:
            del place[last]
        file.write_text(json.dumps(data))
        with pytest.raises(ArtefactError, match=field.split(".")[-1] if field != "assets.main" else "x.aimodel"):
            check_bundle(tmp_path / "b")
        file.write_text((made("fp32").folder / "metadata.json").read_text())
    assert check_bundle(tmp_path / "b")["kind"] == "llm"


@needs_coreai
def test_missing_parts(made, tmp_path):
    shutil.copytree(made("fp32").folder, tmp_path / "b")
    (tmp_path / "b/tokenizer/tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match=r"tokenizer/tokenizer\.json is missing"):
        check_bundle(tmp_path / "b")
    (tmp_path / "b/metadata.json").unlink()
    with pytest.raises(ArtefactError, match=r"metadata\.json is missing"):
        check_bundle(tmp_path / "b")


@needs_coreai
def test_notes_for_apples_runner(made):
    """What it would refuse is said when the bundle is written."""
    assert any("float16 logits only" in note for note in made("fp32").notes)
    assert not any("float16 logits only" in note for note in made("q4f16").notes)


@needs_coreai
def test_damaged_assets_are_refused(made, tmp_path):
    """Bytes changed at random: an error with a name, or the same blobs; and a session that says how its process ended."""
    source = (made("q4").folder / "stdlib-5m.aimodel/main.mlirb").read_bytes()
    rng, file = np.random.default_rng(0), tmp_path / "main.mlirb"
    for turn in range(150):
        data = bytearray(source)
        if turn % 5 == 0:
            del data[int(rng.integers(0, len(data))) :]
        else:
            ends = [int(rng.integers(0, 200)), int(rng.integers(len(data) - 9000, len(data)))]
            data[ends[turn % 2]] = int(rng.integers(0, 256))
        file.write_bytes(data)
        try:
            read_blobs(file)
            read_asset(tmp_path)
        except CheckpointError:
            pass
    shutil.copytree(made("q4").folder, tmp_path / "b")
    asset = tmp_path / "b/stdlib-5m.aimodel/main.mlirb"
    broken = bytearray(asset.read_bytes())
    broken[40:4000] = bytes(3960)
    asset.write_bytes(broken)
    with pytest.raises(ArtefactError, match="Core AI"):
        require("coreai")[0].open(tmp_path / "b", Options(capacity=16))


@needs_coreai
def test_what_a_decoder_refuses(made, tmp_path):
    runtime, _ = require("coreai")
    spec = load(STDLIB).spec
    assert "one sequence" in runtime.refuses(spec, Options(batch=2))
    if sys.platform != "darwin":
        assert "macOS only" in runtime.refuses(spec, Options(variant="ane")) and not runtime.timed
    session = runtime.open(made("fp32").folder, Options(capacity=16))
    with pytest.raises(InputError, match="padding"):
        session.forward(random_ids(4096, 1, 4), np.array([[0, 1, 1, 1]]))
    with pytest.raises(ExportError, match="unknown precision"):
        export_coreai(load(STDLIB), tmp_path / "o", precision="q5")
    assert not (tmp_path / "o").exists()


@needs_coreai
def test_a_runtime_that_ends_its_process(made):
    """Errors of Core AI's runtime are often aborts: the session says so, and this process lives."""
    session = require("coreai")[0].open(made("fp32").folder, Options(capacity=16))
    session.worker._process.kill()
    with pytest.raises(ArtefactError, match=r"ended \(signal 9\)"):
        session.forward(random_ids(4096, 1, 4))


@needs_coreai
@pytest.mark.parametrize("case", COMPONENTS)
def test_the_advice_is_what_the_export_does(case, tmp_path):
    """Apple's composites are in the asset where, and only where, `advise` doesn't say that they can't be."""
    spec = COMPONENTS[case]
    said = " ".join(remarks(spec))
    attentions = [a for _, a, _ in layers(spec) if isinstance(a, GQA)]
    loaded, _ = saved(spec, tmp_path / "s")
    export_coreai(loaded, tmp_path / "m", precision="fp32")
    code = (tmp_path / "m/s.aimodel/main.mlirb").read_bytes()
    if attentions:
        assert (b"scaled_dot_product_attention" in code) == ("attention with" not in said)
    if any(isinstance(a.position, Rope) for a in attentions):
        assert (b"rope_" in code) == ("rotations of part" not in said)


@needs_coreai
def test_no_space(tmp_path):
    """Core AI's own writer would end the process: `LLVM ERROR: IO failure on output stream`."""
    code = (
        "import resource, sys; from edgeformer.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
        f"sys.argv = ['edgeformer', 'export', {str(STDLIB)!r}, '--to', 'coreai', '-o', {str(tmp_path / 'm')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "File too large. Nothing was left behind" in done.stderr, done.stderr[-500:]
    assert not list(tmp_path.iterdir())


@needs_coreai
@pytest.mark.parametrize("precision", ["fp16", "q4", "q8f16", "bf16"])
def test_progress(precision, tmp_path):
    """Bytes of weights, up to the announced total."""
    seen = []
    export_coreai(load(STDLIB), tmp_path / "m", precision=precision, progress=lambda *now: seen.append(now))
    assert len({total for _, total in seen}) == 1 and seen == sorted(seen) and seen[-1][0] == seen[-1][1]


@needs_coreai
def test_a_quantized_checkpoint_by_default(tmp_path):
    """Its own codes, with the arithmetic that Apple's runner asks for."""
    edgeformer.quantize(STDLIB, tmp_path / "q", method="rtn", format="q8", keep=["layers.0.*"])
    made = export_coreai(load(tmp_path / "q"), tmp_path / "m")
    assert (made.manifest["precision"], made.manifest["compute"]) == ("q8f16", "fp16")


def test_one_version_is_tested():
    """The extra, the tests' tools and the check of the version name the same one."""
    root = STDLIB.parent.parent
    for file in ("pyproject.toml", "tests/peers"):
        assert f"coreai-core=={package.TESTED[-1]}" in (root / file).read_text()


@needs_coreai
def test_the_same_bytes_every_time(made, tmp_path):
    again = export_coreai(load(STDLIB), tmp_path / "m", precision="q4")
    for name in ("main.mlirb", "main.hash", "metadata.json"):
        first = made("q4").folder / "stdlib-5m.aimodel" / name
        assert first.read_bytes() == (again.folder / "stdlib-5m.aimodel" / name).read_bytes()


@needs_coreai
def test_compare_verifies_and_does_not_rank(tmp_path):
    """On Linux its rows have a verdict and a flag, and no rank."""
    saved(small_spec(), tmp_path / "s")
    _, run = edgeformer.compare(
        str(tmp_path / "s"), runtimes=["coreai", "onnxruntime"], settings=Settings(rounds=2, prompts=(8,), gens=(4,))
    )
    rows = {row.plan.runtime: row for row in run.rows if not row.plan.again}
    assert rows["coreai"].verdict == "pass" and rows["onnxruntime"].ranked
    if sys.platform != "darwin":
        assert not rows["coreai"].ranked
        assert "reference" in [flag.code for flag in rows["coreai"].flags]


@needs_coreai
def test_an_encoders_folder(tmp_path):
    """No bundle of a language model: the tokenizer and the pooling lie beside the asset."""
    saved(ENCODERS["encoder-pooled-mlm"], tmp_path / "s")
    export_coreai(load(tmp_path / "s"), tmp_path / "m", precision="fp32")
    assert not (tmp_path / "m/metadata.json").exists() and (tmp_path / "m/modules.json").exists()
    assert load(tmp_path / "m").spec == ENCODERS["encoder-pooled-mlm"]


def test_the_command_needs_no_torch(tmp_path):
    """`export --to coreai` as a user runs it; where the package is missing, its line."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "edgeformer",
        "export",
        str(STDLIB),
        "--to",
        "coreai",
        "-o",
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if package.missing() is None:
        assert done.returncode == 0 and " torch\n" not in done.stderr, done.stderr[-800:]
    else:
        assert done.returncode != 0 and "Traceback" not in done.stderr
        assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("version", "words"), [("2.0.0", "2.0.0 is installed"), (None, "")])
def test_another_version_is_refused(version, words, monkeypatch, tmp_path):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(package.importlib.metadata, "version", found)
    with pytest.raises(RuntimeUnavailable, match=words or "coreai"):
        export_coreai(load(STDLIB), tmp_path / "m", precision="fp32")
    monkeypatch.setattr(package.platform, "machine", lambda: "riscv64")
    if version is None:
        with pytest.raises(RuntimeUnavailable, match="riscv64"):
            package.require()
    assert not (tmp_path / "m").exists()
