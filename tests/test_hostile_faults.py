"""Weights that are no numbers, files that change while they are read, manifests, broken plug-ins, and how all that is told."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support import STDLIB, refusal

from edgeformer import discover
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.loading import load
from edgeformer.checkpoint.manifest import read as read_manifest
from edgeformer.errors import CheckpointError, ConfigError, EdgeformerError, InputError, NumericError, RuntimeFault
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.files.quoting import listed, plain, shown
from edgeformer.files.typed import mismatch
from edgeformer.inference import lookup
from edgeformer.inference.generate import stream_ids
from edgeformer.inference.runtime import Options, Runtime, Session
from edgeformer.ops.sampling import Sampling
from edgeformer.weights.safetensors_file import read_header


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the trained model, to damage."""
    return Path(shutil.copytree(STDLIB, tmp_path / "m"))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ---------------------------------------------------------------------------------------------------------- bad numbers


def with_value(model: Path, value: float) -> Path:
    """The model with one value of one weight replaced."""
    file = model / "model.safetensors"
    tensor = read_header(file)["model.layers.1.mlp.up_proj.weight"]
    bits = {"nan": 0x7FC0, "inf": 0x7F80, "-inf": 0xFF80}[str(value)]
    with file.open("r+b") as f:
        f.seek(tensor.offset + 100)
        f.write(struct.pack("<H", bits))
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(model, value, tmp_path):
    """What is not a number is found by every export that reads it, and named."""
    loaded = load(with_value(model, value))
    for kind in ("onnx", "gguf", "mlx", "hf"):
        if kind == "gguf":
            pytest.importorskip("gguf")
        command = refusal("export", model, "--to", kind, "-o", tmp_path / kind, seconds=30, megabytes=900)
        assert "up_proj" in command and "--allow-nonfinite" in command and not (tmp_path / kind).exists()
    with pytest.raises(CheckpointError, match="value 50"):
        loaded.require_weights()["layers.1.ffn.up.weight"]
    lenient = load(model, allow_nonfinite=True).require_weights()["layers.1.ffn.up.weight"]
    assert not np.isfinite(lenient.astype(np.float32)).all()


@pytest.mark.parametrize("kind", ["checkpoint", "gguf", "mlx", "onnx"])
@pytest.mark.parametrize("precision", ["q4", "q8"])
def test_scales_that_are_no_numbers(model, kind, precision, tmp_path):
    """One scale of a quantized weight, wherever a format keeps it."""
    from edgeformer.api import export, quantize

    if kind == "gguf":
        pytest.importorskip("gguf")
    if kind == "mlx" and lookup.get("mlx")[0].unavailable() is not None:
        pytest.skip("mlx is not installed")
    folder = quantize(model, tmp_path / "q", format=precision).folder
    if kind != "checkpoint":
        options = {"precision": precision, "dtype": "fp16"} if kind == "mlx" else {}
        folder = export(folder, tmp_path / "o", to=kind, **options).folder
    source = folder / "model.gguf" if kind == "gguf" else folder
    tensor = load(str(source)).require_weights().sources["layers.1.ffn.up.weight"].stored
    scales = getattr(tensor, "scales", tensor)  # in GGUF each block begins with its scale
    with scales.file.open("r+b") as f:
        f.seek(scales.offset)
        f.write(struct.pack("<H", 0x7E00))
    with pytest.raises(CheckpointError, match="holds nan"):
        load(str(source)).require_weights()["layers.1.ffn.up.weight"]


@pytest.mark.parametrize("name", ["numpy", "torch", "mlx", "onnxruntime"])
def test_generation_stops_at_logits_that_are_no_numbers(model, name, tmp_path):
    if lookup.get(name)[0].unavailable() is not None:
        pytest.skip(f"{name} is not installed")
    loaded = load(with_value(model, float("nan")), allow_nonfinite=True)
    source = export_onnx(loaded, tmp_path / "o").folder if name == "onnxruntime" else loaded
    session = lookup.get(name)[0].open(source, Options(threads=1, capacity=16))
    with pytest.raises(NumericError, match="logits are not finite"):
        list(stream_ids(session, [5, 6, 7], 4, Sampling()))


# ------------------------------------------------------------------------------------------------------ a file that changes


def test_a_checkpoint_replaced_while_it_is_read(model):
    """An export that was begun on one file never goes on with another, whatever its bytes."""
    loaded = load(model)
    weights = loaded.require_weights()
    first = weights["embed.weight"]
    copy = model / "other"
    shutil.copy(model / "model.safetensors", copy)
    os.replace(copy, model / "model.safetensors")
    assert first.size
    with pytest.raises(CheckpointError, match="changed while it was read"):
        weights["layers.0.ffn.up.weight"]
    with pytest.raises(CheckpointError, match="changed while it was read"):
        export_onnx(loaded, model.parent / "o")
    assert not (model.parent / "o").exists()


def test_a_checkpoint_written_to_during_the_last_tensor(model, monkeypatch):
    """Nothing is read after the edit: it is the comparison at the end that finds it."""
    import edgeformer.exporters.onnx.exporter as exporter

    companions = exporter.write_surroundings

    def edit_and_write(*arguments, **options):
        file = model / "model.safetensors"
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        return companions(*arguments, **options)

    monkeypatch.setattr(exporter, "write_surroundings", edit_and_write)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        export_onnx(load(model), model.parent / "o")


# --------------------------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        ({"files": {"model.onnx": "1"}}, r"files\.'model.onnx' is '1'"),
        ({"linked": {"x": {"path": "/x"}}}, "is missing"),
        ({"linked": 3}, "linked is 3"),
        ({"quantization": []}, "quantization"),
        ({"quantization": {"accuracy_level": "4"}}, "accuracy_level"),
        ({"context": True}, "context"),
        ({"context": -1}, "context"),
        ({"format": "exe"}, "format"),
        ({"kv": {}}, "kv"),
        ({"compute": "[/]"}, "compute"),
        ({"task": "x"}, "task"),
        ({"schema": 10**30}, "newer"),
        ({"schema": "1"}, "has no schema number"),
    ],
)
def test_types_of_a_manifest(tmp_path, change_of, message):
    sound = {"schema": 1, "files": {}, "linked": {}, "context": 64}
    sound |= dict.fromkeys(("name", "spec_digest", "weights_digest", "precision", "target"), "x")
    sound |= {"task": "text-generation", "compute": "fp32"}
    (tmp_path / "edgeformer.json").write_text(json.dumps(sound))
    assert read_manifest(tmp_path / "edgeformer.json", InputError) == sound
    (tmp_path / "edgeformer.json").write_text(json.dumps(sound | change_of))
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "edgeformer.json", InputError)


def test_types_are_told_apart():
    assert mismatch(1, float) is None and mismatch(True, int) is not None and mismatch(1.0, int) is not None
    assert mismatch({"a": [1, None]}, dict[str, list[int | None]]) is None
    assert mismatch({"a": [1, "x"]}, dict[str, list[int | None]]) == "a[1] is 'x'; it must be int | None"
    assert mismatch(float("nan"), float) is not None


# ---------------------------------------------------------------------------------------------------------------- plug-ins


_numbers = itertools.count()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs a plug-in: its group, its name, and the text of its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    discover._warn.cache_clear()

    def install(group: str, name: str, content: str) -> None:
        module = f"plugin_{name}_{next(_numbers)}"  # a name of its own: what a test imported stays imported
        (tmp_path / f"{module}.py").write_text(content)
        known = discover._entry_points
        monkeypatch.setattr(discover, "_entry_points", lambda g: {**known(g), **({name: module} if g == group else {})})

    return install


BROKEN = {
    "import": "raise ImportError('no such library')",
    "exit": "import sys; sys.exit(3)",
    "constructor": "class Runtime:\n    def __init__(self): raise ValueError('no')",
    "kind": "class Runtime: pass",
    "nothing": "",
    "methods": """
from edgeformer.inference.runtime import Runtime as Base
class Runtime(Base):
    opens = "onnx"
    def broken(self, *_): raise KeyError("no")
    unavailable = versions = takes = refuses = declines = declines_checkpoint = has = target = open = broken
""",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_runtime_ends_nothing_else(plugin, how):
    from click.testing import CliRunner

    from edgeformer.advise.compatibility import answers
    from edgeformer.cli import cli

    plugin("edgeformer.runtimes", "aaa", BROKEN[how])
    assert "aaa" in lookup.names()
    assert lookup.first_that_opens("onnx") != "aaa"
    assert "numpy" in {name for answer in answers(load(STDLIB)) for name in answer.runtimes}
    done = CliRunner().invoke(cli, ["runtimes", "--json"], catch_exceptions=False)
    rows = {row["runtime"]: row for row in json.loads(done.output)["runtimes"]}
    assert not rows["aaa"]["installed"] and rows["aaa"]["missing"] and rows["numpy"]["installed"]
    with pytest.raises(EdgeformerError, match=r"aaa|no|broken"):
        lookup.require("aaa")


@pytest.mark.parametrize(
    "group",
    ["exporters.onnx.targets", "advise.rules", "cli", "checkpoint.gguf_archs", "exporters.mlx.types", "models"]
    + ["measure.probes", "measure.meters"],
)
@pytest.mark.parametrize(
    "content", ["raise ImportError('no such library')", "TARGET = 'x'\ndef __getattr__(name): raise RuntimeError(name)"]
)
def test_a_broken_part_ends_nothing_else(plugin, group, content, caplog):
    from click.testing import CliRunner

    from edgeformer.cli import cli

    plugin(f"edgeformer.{group}", "aaa", content)
    for command in (["--help"], ["targets", str(STDLIB), "--json"], ["advise", str(STDLIB)]):
        done = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output[-500:])
    from edgeformer.measure.energy import find_meter

    find_meter()


def test_faults_of_a_runtime_are_errors_that_name_it():
    class Fails(Session):
        def _step(self, ids, mask, all_positions):
            raise RuntimeError("out of registers")

        def _tokens(self, prompt, count, sampling):
            yield 1
            raise RuntimeError("out of tokens")

    session = Fails(load(STDLIB).spec, Options(capacity=8))
    with pytest.raises(RuntimeFault, match="out of registers"):
        session.forward(np.array([[1]]))
    with pytest.raises(RuntimeFault, match="out of tokens"):
        list(session.tokens([1], 3, Sampling()))

    class Opens(Runtime):
        opens = "checkpoint"

        def open(self, source, options):
            raise OSError("no such device")

    with pytest.raises(RuntimeFault, match="no such device"):
        Opens().open(Path(), Options())


# ------------------------------------------------------------------------------------------------------- what is printed


def test_what_comes_from_files_is_shown_plainly():
    assert plain("a\x1b]0;owned\x07b\u202ec\n\td") == "a\\x1b]0;owned\\x07b\\u202ec\n\td"
    assert plain("é 🙂 ± ×") == "é 🙂 ± ×"
    assert len(plain("x" * 10**6, limit=1000)) < 1100
    assert shown("a" * 10**7).endswith("... (10,000,000 characters)") and len(shown("a" * 10**7)) < 250
    assert len(shown({"a": ["b" * 1000] * 1000})) < 250 and len(shown(10**5000)) < 250
    assert listed(map(str, range(10**5))).endswith("19, ... (100,000 in all)")


def test_names_in_errors_and_tables(model):
    change(model / "config.json", **{"\x1b]0;owned\x07": 1, **{f"key{i}": 1 for i in range(10**4)}})
    error = refusal("inspect", model)
    assert "\x1b" not in error and "10,001 in all" in error and "\\x1b]0;owned\\x07" in error
    change(model / "config.json", hidden_act="x" * 10**6)
    assert "1,000,000 characters" in refusal("inspect", model)


def test_the_last_resort(tmp_path, monkeypatch, capsys):
    """A fault of our own: one line, a file with the rest, exit code 70."""
    import edgeformer.cli as command_line

    def fails(**_):
        raise ZeroDivisionError("division by\x1b[2J zero")

    monkeypatch.setenv("EDGEFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(command_line, "cli", fails)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr().err
    assert ended.value.code == 70 and said.count("\n") == 1 and "\x1b" not in said
    (file,) = (tmp_path / "crashes").glob("*.txt")
    assert str(file) in said and "Traceback" in file.read_text() and "ZeroDivisionError" in file.read_text()


@pytest.mark.parametrize(
    "change_of",
    [{"artifact_bytes": 10**400}, {"round_medians_ns": [10**400]}, {"cpu_info": "\ud800"}, {"model": "\ud800"}],
)
def test_values_of_records(tmp_path, change_of):
    from edgeformer.measure.reading import read_records

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"suite": "edgeformer", "schema_version": 2, **change_of}))
    with pytest.raises(InputError, match=r"line 1|record 1"):
        read_records(file)


@pytest.mark.parametrize(
    "content", ["command = 5", "command = None", "", "def __getattr__(name): raise RuntimeError('no\x1b[31m')"]
)
def test_a_broken_command(plugin, content, caplog):
    from click.testing import CliRunner

    from edgeformer.cli import cli

    plugin("edgeformer.cli", "aaa", content)
    assert CliRunner().invoke(cli, ["--help"], catch_exceptions=False).exit_code == 0
    if content != "command = None":
        with pytest.raises(EdgeformerError, match=r"the plug-in 'aaa' of edgeformer.cli .* is broken"):
            cli(["aaa"], standalone_mode=False)
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("url", ["//localhost:99999999/v1", "//localhost:abc/v1", "//[::1/v1", "//" + "a" * 300, "//"])
def test_urls_of_servers(url):
    with pytest.raises(InputError, match="is not a server URL"):
        lookup.get("http")[0].refuses(load(STDLIB).spec, Options(variant=url))


def test_a_temperature_of_almost_nothing_is_greedy():
    from edgeformer.ops.sampling import choose

    logits = np.array([1.0, 5.0, 2.0], np.float32)
    assert choose(logits, Sampling(temperature=1e-320), np.random.default_rng(0)) == 1


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_folder_where_a_file_belongs(model, name, tmp_path):
    (model / name).unlink(missing_ok=True)
    (model / name).mkdir()
    with pytest.raises(EdgeformerError, match=f"{name}.*(not a regular file|Is a directory)"):
        export_onnx(load(model), tmp_path / "o")


@pytest.mark.parametrize("content", [{"x": {}}, {"x": []}, {"x": "7"}, {"x": None}])
def test_types_of_added_tokens(model, content):
    (model / "added_tokens.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"added_tokens.json: x is"):
        read_tokenizer(model)


@pytest.mark.parametrize("value", [5, "a", {"a": {}}, [{}, [], None, 7], [{"content": {}}]])
def test_types_of_extra_tokens(model, value):
    """What is no token is none; the others are read."""
    (model / "added_tokens.json").write_text("{}")
    change(model / "tokenizer_config.json", additional_special_tokens=value, extra_special_tokens=value)
    assert read_tokenizer(model).encode("import os")
