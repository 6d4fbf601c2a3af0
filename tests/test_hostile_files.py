"""Files that announce more than they hold, contradict themselves, or would run for ever: one error, little memory, little time.

The oracles are the official readers (`tests/fuzz/readers.py` compares many more) and the operating system's own counters.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import STDLIB

from edgeformer import discover
from edgeformer.checkpoint import load
from edgeformer.companions.chat import render
from edgeformer.companions.tokenizer import GuardedTokenizer, read_tokenizer
from edgeformer.errors import (
    CheckpointError,
    ConfigError,
    EdgeformerError,
    InputError,
    NumericError,
    RuntimeFault,
    SpecError,
)
from edgeformer.export.onnx import export_onnx
from edgeformer.generate import stream_ids
from edgeformer.gguf_header import read_gguf_header
from edgeformer.manifest import read as read_manifest
from edgeformer.patterns import bounded
from edgeformer.quoting import listed, plain, shown
from edgeformer.runtimes import _lookup
from edgeformer.runtimes._protocol import Options, Runtime, Session
from edgeformer.safetensors_file import read_header
from edgeformer.sampling import Sampling
from edgeformer.serialization import from_json
from edgeformer.typed import mismatch

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))


def refusal(*arguments: object, seconds: float = 10.0, megabytes: int = 500) -> str:
    """The one error of a command that has to refuse what it is given; its time and memory, imports included, are bounded."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.monotonic()
    command = [sys.executable, "-P", "-m", "edgeformer", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"RUST_BACKTRACE": "0"})
    assert done.returncode == 2, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert time.monotonic() - start < seconds
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after <= max(before, megabytes * 1024), f"{after / 1024:.0f} MB"
    assert len(done.stderr) < 6000
    return done.stderr


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the trained model, to damage."""
    return Path(shutil.copytree(STDLIB, tmp_path / "m"))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ------------------------------------------------------------------------------------------------------- sizes and counts


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "head_dim", "max_position_embeddings", "vocab_size", "intermediate_size"]
)
@pytest.mark.parametrize("value", [2**31, 2**62, 10**400])
def test_sizes_of_a_config(model, key, value):
    change(model / "config.json", **{key: value})
    with pytest.raises((ConfigError, CheckpointError), match=f"{key}|does not fit|not JSON"):
        load(model)


def test_a_config_of_a_few_bytes_takes_no_gigabytes(tmp_path):
    for i, (key, value) in enumerate(
        (("num_hidden_layers", 4_000_000_000), ("head_dim", 2**40), ("num_hidden_layers", 10**9))
    ):
        file = tmp_path / f"{i}.json"
        file.write_text(json.dumps(json.loads((STDLIB / "config.json").read_text()) | {key: value}))
        assert "at most" in refusal("inspect", file)


def test_repetitions_of_a_spec():
    node = {"kind": "rms_norm"}
    for depth in (1, 3):
        nested: dict = {"kind": "decoder", "blocks": [node]}
        for _ in range(depth):
            nested = {"kind": "decoder", "blocks": [{"repeat": 10**6 if depth == 1 else 1000, "of": nested}]}
        with pytest.raises(SpecError, match="nodes with all repetitions"):
            from_json(nested)


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf")])
def test_numbers_of_a_spec_that_are_none(value):
    with pytest.raises(SpecError, match="not of type|too large"):
        from_json({"kind": "rms_norm", "eps": value})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_nesting(model, name, text):
    (model / name).write_text(text)
    with pytest.raises(EdgeformerError, match="nested deeper|not JSON"):
        export_onnx(load(model), model.parent / "o")


def gguf_file(file: Path, *fields: bytes, keys: int | None = None, tensors: int = 0, after: bytes = b"") -> Path:
    """A GGUF file of encoded fields, with counts that may lie."""
    file.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields) if keys is None else keys) + b"".join(fields) + after
    )
    return file


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("fields", "counts", "message"),
    [
        ((), {"keys": 2**60}, "announces"),
        ((), {"tensors": 2**60}, "announces"),
        ((text("a") + struct.pack("<IIQ", 9, 4, 2**60),), {}, "announces"),
        ((text("a") + struct.pack("<IIQ", 9, 8, 2**62),), {}, "announces"),
        ((struct.pack("<Q", 2**63),), {}, "announces"),
        ((text("a") + struct.pack("<II", 4, 1), text("a") + struct.pack("<II", 4, 2)), {}, "stands twice"),
        ((text("a") + struct.pack("<IIQ", 9, 9, 0),), {}, "can't be in a list"),
        ((text("a") + struct.pack("<I", 99),), {}, "not known"),
        ((text("general.alignment") + struct.pack("<II", 4, 3),), {}, "power of two"),
    ],
)
def test_counts_of_a_gguf_file(tmp_path, fields, counts, message):
    file = gguf_file(tmp_path / "m.gguf", *fields, **counts)
    with pytest.raises(CheckpointError, match=message):
        read_gguf_header(file)
    assert message in refusal("inspect", file)


def test_tensors_of_a_gguf_file_lie_end_to_end(tmp_path):
    def info(name: str, dims: tuple[int, ...], offset: int) -> bytes:
        return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)

    cases = {
        "where the one before it ends": info("a", (8,), 0) + info("b", (8,), 0),
        "truncated": info("a", (2**20, 2**20), 0),
        "stands twice": info("a", (8,), 0) + info("a", (8,), 32),
        "at most 4": text("a") + struct.pack("<I", 5),
    }
    for message, infos in cases.items():
        with pytest.raises(CheckpointError, match=message):
            read_gguf_header(
                gguf_file(
                    tmp_path / "m.gguf",
                    tensors=infos.count(b"\x01\x00\x00\x00\x00\x00\x00\x00"),
                    after=infos + bytes(256),
                )
            )


def test_a_header_of_safetensors_is_no_larger_than_any_known(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as f:
        f.write(struct.pack("<Q", 90_000_000) + b"{")
        f.truncate(90_000_100)
    with pytest.raises(CheckpointError, match=r"at most 25,000,000"):
        read_header(file)


# ------------------------------------------------------------------------------------------------- as strict as the official


@pytest.mark.parametrize(("name", "count"), [("safetensors", 3000), ("gguf", 1000), ("onnx", 1000)])
def test_readers_beside_the_official_ones(name, count, tmp_path):
    import readers

    assert list(readers.compare(name, 10**6, count, tmp_path)) == []
    assert readers.read[name] > count // 20


def test_a_name_that_stands_twice(tmp_path):
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match="stands twice"):
        read_header(tmp_path / "model.safetensors")


# ------------------------------------------------------------------------------------------------ templates, tokenizers, patterns

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "longer than"),
        ("{{ 'a' * (10 ** 10) }}", "memory"),
        ("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "memory"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{% if %}", "Expected"),
    ],
)
def test_templates_end(template, message):
    with pytest.raises(InputError, match=message):
        render(template, MESSAGES, {})
    assert render("{{ messages[0].content }}!", MESSAGES, {}) == "x!"  # the next one runs


def with_tokenizer(folder: Path, **parts) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(json.loads((STDLIB / "tokenizer.json").read_text()) | parts))
    return folder


def split_by(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def test_padding_of_any_length_is_left_out(tmp_path):
    padding = {
        "strategy": {"Fixed": 2**40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    plain_one = read_tokenizer(with_tokenizer(tmp_path / "a")).encode("import os")
    assert read_tokenizer(with_tokenizer(tmp_path / "b", padding=padding)).encode("import os") == plain_one


@pytest.mark.parametrize("pattern", ["(a+a+)+$", "(a|aa)+$", "(.*.*.*)*="])
def test_patterns_of_a_tokenizer_end(tmp_path, pattern):
    tokenizer = read_tokenizer(with_tokenizer(tmp_path / "t", pre_tokenizer=split_by(pattern)))
    assert isinstance(tokenizer, GuardedTokenizer)
    start = time.monotonic()
    try:
        tokenizer.encode("a" * 40 + "!")
    except InputError as e:
        assert "fails on this text" in str(e)
    assert time.monotonic() - start < 15
    assert tokenizer.encode("b")  # it is there for the next text


def test_a_guarded_tokenizer_gives_the_same_ids(tmp_path):
    """The oracle: the same file, read by the package in this process."""
    from tokenizers import Tokenizer

    folder = with_tokenizer(tmp_path / "t", pre_tokenizer=split_by(r"(?:\w+|\W)"))
    ours, theirs = read_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert isinstance(ours, GuardedTokenizer)
    for sample in ("import os\n", "x = [1, 2]", "héllo 🙂"):
        assert ours.encode(sample) == theirs.encode(sample).ids
        assert ours.decode(ours.encode(sample)) == theirs.decode(theirs.encode(sample).ids)
    assert json.loads(ours.to_json() or "")["model"] == json.loads(theirs.to_str())["model"]


def test_texts_that_grow_without_end(tmp_path):
    grow = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}] * 8,
    }
    tokenizer = read_tokenizer(with_tokenizer(tmp_path / "t", normalizer=grow))
    with pytest.raises(InputError, match="fails on this text"):
        tokenizer.encode("aaaa")


def test_patterns_of_an_adapter():
    assert bounded(r"(.*\.)?(q_proj|v_proj)$", "it", ConfigError).fullmatch("layers.1.q_proj")
    for pattern in ("(a+)+$", r"(a)\1", "a*" * 9, "x" * 2000, "(", "(?P<n>a)(?P=n)"):
        with pytest.raises(ConfigError, match="it has"):
            bounded(pattern, "it", ConfigError)


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


@pytest.mark.parametrize("name", ["numpy", "torch", "mlx", "onnxruntime"])
def test_generation_stops_at_logits_that_are_no_numbers(model, name, tmp_path):
    if _lookup.get(name)[0].unavailable() is not None:
        pytest.skip(f"{name} is not installed")
    loaded = load(with_value(model, float("nan")), allow_nonfinite=True)
    source = export_onnx(loaded, tmp_path / "o").folder if name == "onnxruntime" else loaded
    session = _lookup.get(name)[0].open(source, Options(threads=1, capacity=16))
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
    import edgeformer.export.onnx as exporter

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
        ({"schema": 10**30}, "newer"),
        ({"schema": "1"}, "names no schema"),
    ],
)
def test_types_of_a_manifest(tmp_path, change_of, message):
    sound = {"schema": 1, "files": {}, "linked": {}, "context": 64}
    sound |= dict.fromkeys(("name", "task", "spec_digest", "weights_digest", "precision", "compute", "target"), "x")
    (tmp_path / "edgeformer.json").write_text(json.dumps(sound))
    assert read_manifest(tmp_path / "edgeformer.json", InputError) == sound
    (tmp_path / "edgeformer.json").write_text(json.dumps(sound | change_of))
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "edgeformer.json", InputError)


def test_types_are_told_apart():
    assert mismatch(1, float) is None and mismatch(True, int) is not None and mismatch(1.0, int) is not None
    assert mismatch({"a": [1, None]}, dict[str, list[int | None]]) is None
    assert mismatch({"a": [1, "x"]}, dict[str, list[int | None]]) == "a[1] is 'x', and has to be int | None"
    assert mismatch(float("nan"), float) is not None


# ---------------------------------------------------------------------------------------------------------------- plug-ins


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs a plug-in: its group, its name, and the text of its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    discover._warn.cache_clear()

    def install(group: str, name: str, content: str) -> None:
        module = f"plugin_{name}_{len(list(tmp_path.iterdir()))}"
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
from edgeformer.runtimes._protocol import Runtime as Base
class Runtime(Base):
    opens = "onnx"
    def broken(self, *_): raise KeyError("no")
    unavailable = versions = takes = refuses = declines = declines_checkpoint = has = target = open = broken
""",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_runtime_ends_nothing_else(plugin, how):
    from click.testing import CliRunner

    from edgeformer.cli import cli
    from edgeformer.compatibility import answers

    plugin("edgeformer.runtimes", "aaa", BROKEN[how])
    assert "aaa" in _lookup.names()
    assert _lookup.first_that_opens("onnx") != "aaa"
    assert "numpy" in {name for answer in answers(load(STDLIB)) for name in answer.runtimes}
    done = CliRunner().invoke(cli, ["runtimes", "--json"], catch_exceptions=False)
    rows = {row["runtime"]: row for row in json.loads(done.output)["runtimes"]}
    assert not rows["aaa"]["installed"] and rows["aaa"]["missing"] and rows["numpy"]["installed"]
    with pytest.raises(EdgeformerError, match="aaa|no|broken"):
        _lookup.require("aaa")


@pytest.mark.parametrize(
    "group",
    ["export.targets", "advice", "cli", "gguf_archs", "export.mlx_types", "models", "measure.probes", "measure.meters"],
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
