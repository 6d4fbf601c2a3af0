"""What an artefact's user sees, and the other files of a folder. Oracle: each target's own tool, the package gguf."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from chat_model import TEMPLATE, chat_model, tokenizer
from encoder_cases import pair_settings
from family_cases import TINY
from support import STDLIB, hf_model

from edgeformer.api import export
from edgeformer.checkpoint.companions.chat import chat_templates
from edgeformer.checkpoint.companions.files import companions_of
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.companions.texts import TEXTS, texts_of
from edgeformer.checkpoint.companions.tokenizer import load_tokenizer, read_tokenizer
from edgeformer.checkpoint.loading import load
from edgeformer.errors import CheckpointError, ConfigError, ExportError
from edgeformer.inference.lookup import get
from edgeformer.verification import parity

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    return folder, chat_model(folder)


# -------------------------------------------------------------------------------------------------- the chat contract

TARGETS = {  # what is written -> (options, runtime that is asked)
    "onnx": ({}, "ort_genai"),
    "gguf": ({"to": "gguf"}, "llama_cpp"),
    "mlx": ({"to": "mlx"}, "mlx_lm"),
    "hf": ({"to": "hf"}, "transformers"),
    "onnx q8": ({"precision": "q8", "accuracy_level": 0}, "onnxruntime"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_chat_contract(target, chat, tmp_path):
    """Ids, rendered chats, all end ids and a short answer in the target's own tool."""
    options, runtime = TARGETS[target]
    if (missing := get(runtime)[0].unavailable()) is not None:
        pytest.skip(missing)
    folder, more = chat
    export(load(folder), tmp_path / "out", **options)
    verdict = parity.verify(tmp_path / "out", load(folder), runtime=runtime, length=40, generate=8)
    found = {c.name: c for c in verdict.checks}
    assert {"tokenizer", "chat", "stop", "answer"} <= found.keys()
    assert all(c.verdict != parity.FAIL for c in verdict.checks), [(c.name, c.note) for c in verdict.checks]
    assert str(more["<|im_end|>"]) in found["stop"].note


@pytest.mark.parametrize("what", ["template", "stop", "tokens"])
@pytest.mark.parametrize("target", [name for name in TARGETS if name != "gguf"])
def test_a_broken_contract_is_found(target, what, chat, tmp_path):
    """The logits are right, and what users see isn't: verify fails by name."""
    options, runtime = TARGETS[target]
    if (missing := get(runtime)[0].unavailable()) is not None:
        pytest.skip(missing)
    folder, _ = chat
    made = tmp_path / "out"
    export(load(folder), made, **options)
    config = json.loads((made / "tokenizer_config.json").read_text())
    match what:
        case "template":
            broken = TEMPLATE.replace("assistant", "Assistant")
            (made / "chat_template.jinja").write_text(broken)
            (made / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": broken}))
        case "stop":
            for name in ("generation_config.json", "config.json", "genai_config.json"):
                if (file := made / name).exists():
                    data = json.loads(file.read_text())
                    part = data["model"] if name.startswith("genai") else data
                    part["eos_token_id"] = 3
                    file.write_text(json.dumps(data))
        case _:
            data = json.loads((made / "tokenizer.json").read_text())
            vocab = data["model"]["vocab"]
            used = sorted({i for i in read_tokenizer(folder).encode(TEXTS[0]) if 2 < i < 400})
            a, b = [t for t, i in vocab.items() if i in used[-2:]]
            vocab[a], vocab[b] = vocab[b], vocab[a]
            (made / "tokenizer.json").write_text(json.dumps(data))
    manifest = json.loads((made / "edgeformer.json").read_text())
    manifest["files"] = {n: (made / n).stat().st_size for n in manifest["files"]}
    (made / "edgeformer.json").write_text(json.dumps(manifest))
    verdict = parity.verify(made, load(folder), runtime=runtime, length=40, generate=8)
    failed = {c.name for c in verdict.checks if c.verdict == parity.FAIL}
    expected = {"template": "chat", "stop": "stop", "tokens": "tokenizer"}[what]
    assert expected in failed, [(c.name, c.verdict, c.note) for c in verdict.checks]


@pytest.mark.parametrize("what", ["chat", "stop", "tokenizer"])
def test_a_broken_contract_inside_a_gguf_file_is_found(what, chat, tmp_path, monkeypatch):
    """Metadata that a wrong writer would have written; llama.cpp is asked."""
    if (missing := get("llama_cpp")[0].unavailable()) is not None:
        pytest.skip(missing)
    from edgeformer.exporters.gguf import exporter as gguf

    real, folder = gguf.tokenizer_metadata, tmp_path / "m"
    shutil.copytree(chat[0], folder)
    file = folder / "generation_config.json"  # an end that llama.cpp doesn't know by its text, as it does <|im_end|>
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [chat[1]["<tool>"]]}))

    def broken(around, vocab):
        found, notes = real(around, vocab)
        match what:
            case "chat":
                found["tokenizer.chat_template"] = TEMPLATE.replace("assistant", "Assistant")
            case "stop":
                found["tokenizer.ggml.eos_token_id"] = 300
            case _:
                merges = found["tokenizer.ggml.merges"]
                found["tokenizer.ggml.merges"] = merges[len(merges) // 2 :]
        return found, notes

    monkeypatch.setattr(gguf, "tokenizer_metadata", broken)
    monkeypatch.setattr(gguf, "check_in_llama_cpp", lambda around, file: None)
    export(load(folder), tmp_path / "g", to="gguf")
    verdict = parity.verify(tmp_path / "g", load(folder), runtime="llama_cpp", length=40, generate=8)
    assert what in {c.name for c in verdict.checks if c.verdict == parity.FAIL}


def test_what_an_artefact_holds(chat, tmp_path):
    """Everything once, in the places that each tool reads."""
    folder, more = chat
    export(load(folder), tmp_path / "o")
    genai = json.loads((tmp_path / "o" / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [more["<|im_end|>"], more["<|endoftext|>"], 1]
    search = genai["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"], search["top_p"]) == (True, 0.6, 20, 0.95)
    assert json.loads((tmp_path / "o" / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert (tmp_path / "o" / "chat_template.jinja").read_text() == TEMPLATE
    from tokenizers import Tokenizer

    bare = Tokenizer.from_file(str(tmp_path / "o" / "tokenizer.json"))  # what other tools read, and nothing else
    assert bare.truncation is None and bare.padding is None
    assert bare.encode("<|im_start|>x").ids == read_tokenizer(folder).encode("<|im_start|>x")


def test_an_artefact_whose_tokenizer_would_differ_is_not_written(chat, tmp_path, monkeypatch):
    from edgeformer.checkpoint.companions import writing

    folder, _ = chat
    monkeypatch.setattr(writing, "normalized_json", lambda around: tokenizer(300).to_str())
    with pytest.raises((ExportError, ConfigError), match=r"the ids \[|gives it"):
        export(load(folder), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_gguf_holds_template_ends_and_tokens(chat, tmp_path):
    """Read by the package gguf; and a GGUF file is a MODEL with all of it."""
    gguf = pytest.importorskip("gguf")
    folder, more = chat
    export(load(folder), tmp_path / "g", to="gguf")
    fields = gguf.GGUFReader(str(tmp_path / "g" / "model.gguf")).fields
    told = {k.removeprefix("tokenizer."): f.contents() for k, f in fields.items() if k.startswith("tokenizer.")}
    assert told["chat_template"] == TEMPLATE and told["ggml.eos_token_id"] == more["<|im_end|>"]
    sampling = {k: f.contents() for k, f in fields.items() if k.startswith("general.sampling.")}
    assert sampling["general.sampling.top_k"] == 20 and abs(sampling["general.sampling.temp"] - 0.6) < 1e-6
    assert {told["ggml.eot_token_id"], told["ggml.eom_token_id"]} == {more["<|endoftext|>"], 1}
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "g" / "model.gguf", tmp_path / "alone" / "m.gguf")
    again = load(tmp_path / "alone" / "m.gguf")
    ids = special_ids(again.around)
    assert set(ids.eos) == {more["<|im_end|>"], more["<|endoftext|>"], 1} and ids.bos == 0
    source, made = read_tokenizer(folder), load_tokenizer(again.around)
    assert all(made.encode(t) == source.encode(t) for t in texts_of(source))
    assert chat_templates(again.around) == {"default": TEMPLATE}
    export(again, tmp_path / "o")
    assert set(special_ids(companions_of(tmp_path / "o")).eos) == set(ids.eos)
    assert (tmp_path / "o" / "chat_template.jinja").read_text() == TEMPLATE


def test_more_ends_than_gguf_has_places_for(tmp_path):
    """Those that llama.cpp wouldn't find by their text are named."""
    more = chat_model(tmp_path / "m")
    file = tmp_path / "m" / "generation_config.json"
    data = json.loads(file.read_text())
    file.write_text(
        json.dumps(data | {"eos_token_id": [more["<|im_end|>"], more["<|endoftext|>"], 1, more["<tool>"], 50, 51]})
    )
    made = export(load(tmp_path / "m"), tmp_path / "g", to="gguf")
    assert any("only three end-of-text ids" in note and "51" in note for note in made.notes)


# ------------------------------------------------------------------------------------------------- other files of a folder


def test_unknown_files_are_named(chat, tmp_path):
    folder, _ = chat
    assert load(folder).notes == []
    shutil.copytree(folder, tmp_path / "m")
    for name in (
        "README.md",
        "training_args.bin",
        "tf_model.h5",
        "modeling_x.py",
        "odd.dat",
        "extra-q8.gguf",
        "value_head.safetensors",
    ):
        (tmp_path / "m" / name).write_bytes(b"x")
    notes = " | ".join(load(tmp_path / "m").notes)
    assert "code (modeling_x.py)" in notes and "odd.dat" in notes and "extra-q8.gguf, value_head.safetensors" in notes
    assert not any(name in notes for name in ("README", "training_args", "tf_model"))


def test_a_scheme_that_is_not_read_is_named(tmp_path):
    hf_model(tmp_path, "llama", **TINY)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}}))
    with pytest.raises(CheckpointError, match=r"quant_algo is 'W4A8_AWQ'; of ModelOpt's, FP8 and NVFP4 are read"):
        load(tmp_path)


@pytest.mark.parametrize(("model_type", "config"), [("qwen3", TINY), ("t5", pair_settings("t5", {}))])
def test_models_that_embed(model_type, config, tmp_path):
    """A decoder becomes an embedder; pooling of an encoder-decoder model's encoder isn't built, and a note says so."""
    hf_model(tmp_path, model_type, auto="AutoModelForSeq2SeqLM" if model_type == "t5" else None, **config)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    loaded = load(tmp_path)
    assert ("sentence_embedding" in loaded.spec.outputs()) == (model_type == "qwen3")
    assert any("modules.json is ignored" in note for note in loaded.notes) == (model_type == "t5")


def test_split_gguf(tmp_path):
    """Any part stands for all; a missing one is named; an untied head in the second file is found."""
    gguf = pytest.importorskip("gguf")
    loaded = load(STDLIB)
    export(loaded, tmp_path / "g", to="gguf", precision="q8")
    reader = gguf.GGUFReader(str(tmp_path / "g" / "model.gguf"))
    half = len(reader.tensors) // 2
    for n, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = gguf.GGUFWriter(str(tmp_path / f"m-0000{n + 1}-of-00002.gguf"), "llama")
        if n == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    kind = field.types[0]
                    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, field.contents(), kind, sub_type=sub)
        writer.add_key_value("split.no", n, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", 2, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.tensors.count", len(reader.tensors), gguf.GGUFValueType.INT32)
        for t in tensors:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    whole = load(tmp_path / "g" / "model.gguf").weights
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        parts = load(tmp_path / name).weights
        assert parts.keys() == whole.keys() and all(np.array_equal(parts[k], whole[k]) for k in whole)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(
        CheckpointError, match=r"one of the 2 files of a split GGUF model; m-00002-of-00002\.gguf missing"
    ):
        load(tmp_path / "m-00001-of-00002.gguf")


def test_gguf_beside_a_config(tmp_path):
    """A hub's GGUF repository: the original's config.json beside one file is no other model; of two files one has to be named."""
    pytest.importorskip("gguf")
    export(load(STDLIB), tmp_path / "g", to="gguf", precision="q8")
    (tmp_path / "m").mkdir()
    shutil.copy(tmp_path / "g" / "model.gguf", tmp_path / "m" / "stdlib-Q8_0.gguf")
    shutil.copy(STDLIB / "config.json", tmp_path / "m" / "config.json")
    assert load(tmp_path / "m").spec == load(STDLIB).spec
    shutil.copy(tmp_path / "g" / "model.gguf", tmp_path / "m" / "stdlib-other.gguf")
    with pytest.raises(
        CheckpointError, match=r"several GGUF files \(stdlib-Q8_0\.gguf, stdlib-other\.gguf\); give one"
    ):
        load(tmp_path / "m")
    assert load(tmp_path / "m" / "stdlib-other.gguf").spec == load(STDLIB).spec


POOLINGS = {  # what writers left in 1_Pooling/config.json -> the modes
    "2.0": ({"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False,
             "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}, ("cls",)),
    "2.4": ({"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False,
             "pooling_mode_weightedmean_tokens": False, "include_prompt": True}, ("mean",)),
    "5.4": ({"embedding_dimension": 48, "pooling_mode": "mean", "include_prompt": True}, ("mean",)),
    "6, several": ({"embedding_dimension": 48, "pooling_mode": ["cls", "max"], "include_prompt": True}, ("cls", "max")),
    "none switched on": ({"word_embedding_dimension": 48, "pooling_mode_mean_tokens": False}, ("mean",)),
}  # fmt: skip
MODULES = ("sentence_transformers.models.Transformer", "sentence_transformers.base.modules.transformer.Transformer")


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("transformer", MODULES)
def test_poolings_of_every_version(transformer, name, tmp_path):
    """By the last part of a module's type, and by flags or one key."""
    from edgeformer.checkpoint.companions.pooling import read_embedder

    config, modes = POOLINGS[name]
    kind = transformer.rsplit(".", 2)[0]
    modules = [{"idx": 0, "name": "0", "path": "", "type": transformer}]
    modules += [
        {"idx": i, "name": str(i), "path": f"{i}_{n}", "type": f"{kind}.{n}"}
        for i, n in ((1, "Pooling"), (2, "Normalize"))
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    found = read_embedder(tmp_path)
    assert (found.modes, found.normalize, found.others) == (modes, True, ())
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config | {"odd": 1}))
    with pytest.raises(ConfigError, match="odd"):
        read_embedder(tmp_path)


def test_encoders_promise_no_head_that_isnt_built(tmp_path):
    """A body's graph gives no logits: tools choose by `architectures` what they expect."""
    import transformers as hf

    config = hf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=60,
                           id2label={0: "a", 1: "b", 2: "c"})  # fmt: skip
    hf.BertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    loaded = load(tmp_path / "m", without_head=True)
    assert any("a head, left out by --without-head" in note for note in loaded.notes)
    export(loaded, tmp_path / "o")
    told = json.loads((tmp_path / "o" / "config.json").read_text())
    assert told["architectures"] == ["BertModel"] and "id2label" not in told
