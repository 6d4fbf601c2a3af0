"""Files that announce more than they hold, contradict themselves, or would run for ever: one error, little memory, little time.

The oracles are the official readers (`tests/fuzz/readers.py` compares many more) and the operating system's own counters.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest
from support import STDLIB, refusal

from edgeformer.checkpoint.companions.chat import render
from edgeformer.checkpoint.companions.guarded_tokenizer import GuardedTokenizer
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.loading import load
from edgeformer.errors import CheckpointError, ConfigError, EdgeformerError, InputError, SpecError
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.files.patterns import bounded
from edgeformer.spec.serialization import from_json
from edgeformer.weights.gguf_header import read_gguf_header
from edgeformer.weights.onnx_file import read_initializers
from edgeformer.weights.safetensors_file import read_header

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))


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
        with pytest.raises(SpecError, match=r"the spec expands to [0-9,]+ nodes"):
            from_json(nested)


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf")])
def test_numbers_of_a_spec_that_are_none(value):
    with pytest.raises(SpecError, match=r"not of type|too large"):
        from_json({"kind": "rms_norm", "eps": value})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_nesting(model, name, text):
    (model / name).write_text(text)
    with pytest.raises(EdgeformerError, match=r"nested deeper|not JSON"):
        export_onnx(load(model), model.parent / "o")


def test_values_of_a_vocabulary(model):
    """90 MB of brackets would be 2 GB of Python's lists."""
    (model / "tokenizer.json").write_text('{"a": [' + ",".join(["[]"] * 30_000_000) + "]}")
    assert "holds more than" in refusal("generate", model, "-p", "x")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_halves_of_surrogate_pairs(model, name, tmp_path):
    """The oracle: serde, which reads JSON in the tools of Hugging Face, refuses them."""
    change(model / name, architectures=["\ud800"])
    with pytest.raises(EdgeformerError, match="surrogate"):
        export_onnx(load(model), tmp_path / "o")
    if name != "tokenizer.json":  # which takes no other keys
        change(model / name, architectures=["\U0001f600"])  # a whole pair, as json.dumps escapes it
        export_onnx(load(model), tmp_path / "o")


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
        ((), {"keys": 2**60}, "declares"),
        ((), {"tensors": 2**60}, "declares"),
        ((text("a") + struct.pack("<IIQ", 9, 4, 2**60),), {}, "declares"),
        ((text("a") + struct.pack("<IIQ", 9, 8, 2**62),), {}, "declares"),
        ((struct.pack("<Q", 2**63),), {}, "declares"),
        ((text("a") + struct.pack("<II", 4, 1), text("a") + struct.pack("<II", 4, 2)), {}, "occurs twice"),
        ((text("a") + struct.pack("<IIQ", 9, 9, 0),), {}, "which arrays can't hold"),
        ((text("a") + struct.pack("<I", 99),), {}, "unknown type"),
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
        "but the one before it ends at": info("a", (8,), 0) + info("b", (8,), 0),
        "truncated": info("a", (2**20, 2**20), 0),
        "occurs twice": info("a", (8,), 0) + info("a", (8,), 32),
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


@pytest.mark.parametrize("count", [65, 200_000])
def test_dimensions_beyond_numpys(count, tmp_path):
    """Their product is compared with the bytes, which takes minutes for many large ones."""
    shape = [1] * count if count < 100 else [99_999_999_999] * count
    entry = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(entry)) + entry + bytes(4))
    with pytest.raises(CheckpointError, match=r"dimensions; at most 64|tensor a of shape") as refused:
        read_header(tmp_path / "model.safetensors")["a"].read()
    assert len(str(refused.value)) < 1000
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="a", data_type=1, dims=[1] * count, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="a.data")
    (tmp_path / "a.data").write_bytes(bytes(4))
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "model.onnx"))
    with pytest.raises(CheckpointError, match="dimensions; at most 64"):
        read_initializers(tmp_path / "model.onnx")


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
    with pytest.raises(CheckpointError, match="occurs twice"):
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


def test_ids_of_tokens(tmp_path):
    model = json.loads((STDLIB / "tokenizer.json").read_text())["model"]
    for i, odd in enumerate((2**31, -1, 2**64, 1.5, None, "7")):
        folder = with_tokenizer(tmp_path / str(i), model=model | {"vocab": model["vocab"] | {"zzz": odd}})
        with pytest.raises(InputError, match="the token 'zzz' has the id"):
            read_tokenizer(folder)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 40}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}},
        {"decoder": {"type": "Sequence", "decoders": [BYTE_LEVEL] + [
            {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 64}] * 7}},
        {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 10**12, "vocab": {"[UNK]": 0, "a": 1, "##a": 2}}},
    ],
)  # fmt: skip
def test_steps_that_multiply_or_never_end_are_guarded(tmp_path, parts):
    """Each is a few kilobytes: forty doublings of bytes, seven decoders that write 64 letters for one, words of any length."""
    start = time.monotonic()
    try:
        tokenizer = read_tokenizer(with_tokenizer(tmp_path / "t", **parts))
        assert isinstance(tokenizer, GuardedTokenizer)
        tokenizer.decode(tokenizer.encode("a" * 20_000 + "é"))
    except InputError:
        pass
    assert time.monotonic() - start < 30
