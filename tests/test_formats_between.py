"""Every format that weights are read from, into every format they are written to: the same logits, and the source untouched."""

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from family_cases import TINY
from support import STDLIB, hf_logits, load_tiny, random_ids

from edgeformer import load
from edgeformer.api import export, verify
from edgeformer.errors import EdgeformerError, InputError
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.quantization.run import quantize

gguf = pytest.importorskip("gguf")
WRITTEN = {
    "onnx": {},
    "link": {"weights": "link"},
    "portable": {"target": "portable"},
    "gguf": {"to": "gguf", "no_tokenizer": True},
    "mlx": {"to": "mlx"},
    "hf": {"to": "hf"},
}
READ = ("hf", "onnx", "portable", "gguf", "mlx")
READERS = {
    "onnx": "onnxruntime",
    "link": "onnxruntime",
    "portable": "onnxruntime",
    "gguf": "llama_cpp",
    "mlx": "mlx",
    "hf": "numpy",
}


def contents(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A Llama with biases and a head of its own in every format that can be read; transformers' answers."""
    folder = tmp_path_factory.mktemp("sources")
    config = TINY | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}
    loaded, model = load_tiny(folder / "hf", "llama", **config)
    for name in READ[1:]:
        export(loaded, folder / name, **WRITTEN[name])
    ids = random_ids(97, 40)
    return folder, ids, hf_logits(model, ids)


@pytest.mark.parametrize("source", READ)
@pytest.mark.parametrize("to", WRITTEN)
def test_the_same_logits(sources, tmp_path, source, to):
    folder, ids, expected = sources
    before = contents(folder / source)
    export(load(folder / source), tmp_path / "out", **WRITTEN[to]) if to != "link" else linked(
        folder / source, tmp_path / "out"
    )
    assert contents(folder / source) == before
    if not (tmp_path / "out").exists():
        return  # refused to link, with a reason
    again = require("numpy")[0].open(load(tmp_path / "out"), Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(again - expected).max() <= 1e-4
    runtime, _ = get(READERS[to])
    if runtime.unavailable() is None:
        opened = load(tmp_path / "out") if runtime.opens == "checkpoint" else tmp_path / "out"
        session = runtime.open(opened, Options(capacity=64))
        assert np.abs(session.forward(ids[None], all_positions=True)[0] - expected).max() <= 1e-4


def linked(source: Path, out: Path) -> None:
    """What can't be linked (rows in another order) may be cut out of the link, or be refused; never wrong."""
    try:
        export(load(source), out, weights="link")
    except EdgeformerError as e:
        assert "--weights copy" in str(e)


@pytest.mark.parametrize("source", ["checkpoint", "onnx", "portable", "gguf"])
@pytest.mark.parametrize("to", ["onnx", "link", "portable", "gguf", "mlx"])
def test_quantized_bits_travel(tmp_path_factory, tmp_path, source, to):
    folder = tmp_path / "source"
    quantize(load(STDLIB), tmp_path / "q4")
    if source == "checkpoint":
        shutil.copytree(tmp_path / "q4", folder)
    else:
        export(load(tmp_path / "q4"), folder, **WRITTEN[source])
    before = contents(folder)
    try:
        export(load(folder), tmp_path / "out", **WRITTEN[to])
    except EdgeformerError as e:
        assert to == "link" and "--weights copy" in str(e)
        return
    assert contents(folder) == before
    from edgeformer.verification.weight_checks import check_weights

    check = check_weights(load(tmp_path / "out"), load(tmp_path / "q4"))
    assert check.verdict == "pass", check.note


@pytest.mark.parametrize("runtime", [None, "numpy", "torch", "onnxruntime", "mlx", "llama_cpp"])
def test_generate_takes_them_all(tmp_path, runtime):
    """A quantized checkpoint, and artefacts for another runtime than the one asked for."""
    from click.testing import CliRunner

    from edgeformer.cli import cli

    if runtime is not None and get(runtime)[0].unavailable() is not None:
        pytest.skip(f"{runtime} is not installed")
    quantize(load(STDLIB), tmp_path / "q8", format="q8")
    export(load(tmp_path / "q8"), tmp_path / "onnx")
    texts = set()
    for model in ("q8", "onnx"):
        arguments = ["generate", str(tmp_path / model), "-p", "def main(", "-n", "8"]
        result = CliRunner().invoke(cli, [*arguments, *(["--runtime", runtime] if runtime else [])])
        assert result.exit_code == 0, result.exception
        texts.add(result.stdout)
    assert len(texts) == 1


def test_a_foreign_onnx_file_beside_a_checkpoint(tmp_path):
    """Hub folders hold both; ours is the checkpoint."""
    shutil.copytree(STDLIB, tmp_path / "both")
    (tmp_path / "both" / "model.onnx").write_bytes(b"")
    assert load(tmp_path / "both").weights is not None


def test_requantized_mlx_folders_pass(tmp_path):
    pytest.importorskip("mlx.core")
    export(load(STDLIB), tmp_path / "m4", to="mlx", precision="4bit")
    export(load(tmp_path / "m4"), tmp_path / "m8", to="mlx", precision="8bit", group_size=32)
    assert verify(tmp_path / "m8", str(tmp_path / "m4"), length=32, generate=4).verdict == "pass"
    made = export(load(tmp_path / "m4"), tmp_path / "g", to="gguf")
    assert made.manifest["precision"] == "fp32"  # the only type that holds scale · code + bias


def test_manifests_say_what_is_held(tmp_path):
    made = export(load(STDLIB), tmp_path / "o", precision="q4", keep=["embed*"])
    data = (tmp_path / "o" / "model.onnx.data").stat().st_size
    weights = sum(np.prod(s.shape) for s in load(STDLIB).require_weights().sources.values())
    assert made.manifest["quantization"]["bits_per_weight"] == pytest.approx(8 * data / weights, rel=0.03)
    with pytest.raises(InputError, match="leaves nothing to quantize"):
        quantize(load(STDLIB), tmp_path / "q", keep=["*"])


def test_two_runs_on_one_output(tmp_path):
    """The second is refused while the first is at work."""
    from edgeformer.quantization.run import _scratch

    with _scratch(tmp_path / "q"), pytest.raises(InputError, match="another process is quantizing"):
        quantize(load(STDLIB), tmp_path / "q")
    quantize(load(STDLIB), tmp_path / "q", method="rtn")


def test_a_failure_at_the_end_keeps_the_work(tmp_path, monkeypatch):
    from edgeformer.quantization import run

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(EdgeformerError, match="No space left"):
        patch.setattr(run, "_companions", full)
        quantize(load(STDLIB), tmp_path / "q")
    assert not (tmp_path / "q").exists()
    made = quantize(load(STDLIB), tmp_path / "q")
    assert "tensors from an earlier run" in made.notes[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q"]


def test_ggufs_of_one_folder_keep_apart(tmp_path):
    """A file among others takes neither a tokenizer nor a manifest that lies beside it."""
    export(load(STDLIB), tmp_path / "g", to="gguf", precision="q4")
    place = tmp_path / "several"
    shutil.copytree(tmp_path / "g", place)
    shutil.copyfile(place / "model.gguf", place / "other.gguf")
    other = load(place / "other.gguf")
    assert (other.folder, other.quantization) == (None, None)
    assert load(tmp_path / "g" / "model.gguf").quantization["method"] == "rtn"


def test_gguf_keys_that_change_the_network(tmp_path):
    loaded, _ = load_tiny(tmp_path / "m", "qwen3", **TINY | {"head_dim": 16})
    from edgeformer.exporters.gguf import exporter

    real = exporter.architecture

    def changed(key, value):
        def architecture(spec, prefer):
            fitting = real(spec, prefer)
            return replace(fitting, metadata={**fitting.metadata, key: value})

        return architecture

    wrong = {"rope.dimension_count": 8, "rope.scaling.type": "longrope", "attention.value_length": 8}
    for key, value in wrong.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "architecture", changed(key, value))
            export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True, force=True)
        with pytest.raises(EdgeformerError, match=rf"model\.gguf: .*({re.escape(key)}|RoPE scaling 'longrope')"):
            load(tmp_path / "g" / "model.gguf")


def test_tokenizers_that_cannot_be_read(tmp_path):
    shutil.copytree(STDLIB, tmp_path / "m")
    for text in ("{}", "not json", '{"model": {"type": "BPE"}}'):
        (tmp_path / "m" / "tokenizer.json").write_text(text)
        with pytest.raises(
            EdgeformerError, match=r"can't (be read|be converted to GGUF|convert this tokenizer)|is not JSON"
        ):
            export(load(tmp_path / "m"), tmp_path / "g", to="gguf")
    shutil.copyfile(STDLIB / "tokenizer.json", tmp_path / "m" / "tokenizer.json")
    (tmp_path / "m" / "generation_config.json").write_text('{"pad_token_id": -1, "eos_token_id": []}')
    export(load(tmp_path / "m"), tmp_path / "g", to="gguf")


def test_quality_takes_the_shortest_context(tmp_path):
    from edgeformer.verification.quality import Settings, measure

    export(load(STDLIB), tmp_path / "o", precision="q4", context=48)
    rows = measure([tmp_path / "o"], load(STDLIB), random_ids(4096, 400), settings=Settings(window=128, tokens=192))
    assert rows[1].against.positions == 192


def test_quality_needs_room(tmp_path, monkeypatch):
    from collections import namedtuple

    from edgeformer.verification import quality

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(quality.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    export(load(STDLIB), tmp_path / "o", precision="q4")
    with pytest.raises(InputError, match="use fewer --tokens"):
        quality.measure([tmp_path / "o"], load(STDLIB), random_ids(4096, 400))


def test_encoders_have_no_budget(tmp_path):
    from edgeformer.quantization.sensitivity import mixed

    encoder = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 64}
    bert, _ = load_tiny(tmp_path / "b", "bert", **encoder, vocab_size=97)
    with pytest.raises(InputError, match="a decoder's next-token predictions"):
        mixed(bert, random_ids(97, 2, 16), 5.0)
