"""What surrounds the weights: tokenizers, special ids, templates, other files. Oracle: transformers, each target's own tool."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from chat_model import TEMPLATE, chat_model, tokenizer
from family_cases import TINY
from support import STDLIB, hf_model, load_tiny

from edgeformer import parity
from edgeformer.api import export
from edgeformer.checkpoint import load
from edgeformer.companions.chat import chat_templates, render
from edgeformer.companions.files import Companions, companions_of
from edgeformer.companions.special import NONE, UNKNOWN, special_ids
from edgeformer.companions.texts import TEXTS, texts_of
from edgeformer.companions.tokenizer import load_tokenizer, read_tokenizer
from edgeformer.errors import CheckpointError, ConfigError, ExportError, InputError
from edgeformer.runtimes._protocol import get

transformers = pytest.importorskip("transformers")


def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def same_ids(folder, ours=None):
    """Our ids and transformers' of the fixed texts, with and without what is put around them."""
    ours, other = ours or read_tokenizer(folder), theirs(folder)
    for text in texts_of(ours):
        assert ours.encode(text) == other(text)["input_ids"], text
        assert ours.encode(text, special=False) == other(text, add_special_tokens=False)["input_ids"], text


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    return folder, chat_model(folder)


# -------------------------------------------------------------------------------------------------------- the tokenizer


def test_saved_truncation_and_padding_do_not_apply(chat):
    """45 ids stay 45; the package's own reading gives 64."""
    from tokenizers import Tokenizer

    folder, _ = chat
    text = TEXTS[0] * 3
    assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids) == 64
    assert read_tokenizer(folder).encode(text) == theirs(folder)(text)["input_ids"]
    same_ids(folder)


def test_tokens_of_the_config_alone_are_known(chat):
    folder, more = chat
    made = read_tokenizer(folder)
    assert made.encode("<|im_start|>user<|im_end|>", special=False)[0] == more["<|im_start|>"]
    assert made.id_of("<tool>") == more["<tool>"] and made.named["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    "where", ["added_tokens.json", "special_tokens_map.json", "additional_special_tokens", "a named token"]
)
def test_tokens_of_older_files_are_known(where, tmp_path):
    """Each file alone, as writers of their time left them."""
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    match where:
        case "added_tokens.json":
            (tmp_path / where).write_text(json.dumps({"<new>": 400, "<other>": 401}))
        case "special_tokens_map.json":
            (tmp_path / where).write_text(
                json.dumps({"pad_token": "<pad>", "additional_special_tokens": ["<x>", "<y>"]})
            )
        case "additional_special_tokens":
            config |= {where: ["<x>", "<y>"]}
        case _:
            config |= {"pad_token": "<pad>", "sep_token": {"content": "<sep>", "__type": "AddedToken", "lstrip": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made, other = read_tokenizer(tmp_path), theirs(tmp_path)
    for text in ("a <new> b<other>", "x<pad>y <sep> z", "<x><y>", *TEXTS[:3]):
        assert made.encode(text) == other(text)["input_ids"], text


def test_an_added_token_under_another_id_is_refused(tmp_path):
    """The model would read another embedding: tokens of the config that don't get the ids it says."""
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    decoder = {"410": {"content": "<new>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(ConfigError, match=r"'<new>' the id 410, tokenizer\.json gives it 400"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"x": {}}}))
    with pytest.raises(ConfigError, match="added tokens"):
        read_tokenizer(tmp_path)


SLOW = {  # class -> files of a tokenizer without tokenizer.json
    "bert": ("vocab.txt",),
    "gpt2": ("vocab.json", "merges.txt"),
    "t5": ("spiece.model",),
    "llama": ("tokenizer.model",),
    "xlm-roberta": ("sentencepiece.bpe.model",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
}


CLASSES = {
    "bert": "BertTokenizer", "gpt2": "GPT2Tokenizer", "t5": "T5Tokenizer", "llama": "LlamaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "marian": "MarianTokenizer",
}  # fmt: skip


def sentencepiece(file, kind="unigram", vocab=330):
    """A small SentencePiece model."""
    spm = pytest.importorskip("sentencepiece")
    text = file.with_suffix(".text")
    text.write_text(
        "\n".join([*(t.replace("\n", " ") for t in TEXTS), *["the quick brown fox jumps over the lazy dog"] * 5])
    )
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(file.with_suffix("")), vocab_size=vocab, model_type=kind, character_coverage=0.98,
        hard_vocab_limit=False, byte_fallback=kind == "bpe", pad_id=-1, minloglevel=2,
    )  # fmt: skip
    text.unlink()
    file.with_suffix(".vocab").unlink()
    if file.suffix != ".model":
        file.with_suffix(".model").rename(file)


def slow_folder(kind, folder):
    folder.mkdir()
    config = {"tokenizer_class": CLASSES[kind]}
    match kind:
        case "bert":
            words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "it", "'", ",", "!"]
            (folder / "vocab.txt").write_text("\n".join([*words, *"abcdefghijklmnopqrstuvwxyz0123456789"]) + "\n")
        case "gpt2":
            data = json.loads(tokenizer().to_str())["model"]
            (folder / "vocab.json").write_text(json.dumps(data["vocab"] | {"<|endoftext|>": len(data["vocab"])}))
            merges = (m if isinstance(m, str) else " ".join(m) for m in data["merges"])
            (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        case "marian":
            sentencepiece(folder / "source.spm")
            sentencepiece(folder / "target.spm")
            import sentencepiece as spm

            pieces = spm.SentencePieceProcessor(str(folder / "source.spm"))
            words = [
                "</s>",
                "<unk>",
                *(p for i in range(len(pieces)) if (p := pieces.IdToPiece(i)) not in ("</s>", "<unk>", "<s>")),
            ]
            (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate([*words, "<pad>"])}))
            config |= {"source_lang": "en", "target_lang": "de", "separate_vocabs": False}
        case _:
            sentencepiece(
                folder / SLOW[kind][0], "bpe" if kind == "llama" else "unigram", 700 if kind == "llama" else 330
            )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": kind if kind != "gpt2" else "gpt2"}))


@pytest.mark.parametrize("kind", SLOW)
def test_folders_without_tokenizer_json(kind, tmp_path):
    """All files of a slow tokenizer go along, and the artefact's gives the source's ids."""
    pytest.importorskip("sentencepiece")
    from edgeformer.companions.writing import write_companions

    slow_folder(kind, tmp_path / "m")
    around = companions_of(tmp_path / "m")
    source, other = load_tokenizer(around), theirs(tmp_path / "m")
    for text in TEXTS:
        assert source.encode(text) == other(text)["input_ids"], text
    (tmp_path / "out").mkdir()
    notes = write_companions(around, tmp_path / "out")
    assert not notes and all((tmp_path / "out" / name).exists() for name in SLOW[kind])
    made = read_tokenizer(tmp_path / "out")
    assert all(made.encode(text) == source.encode(text) for text in TEXTS)


def test_a_folder_with_nothing_to_convert_it_by(tmp_path, monkeypatch):
    """Without transformers: the exact line that installs it."""
    import builtins

    slow_folder("t5", tmp_path / "m")
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r'spiece\.model.*pip install "edgeformer\[tokenizers\]"'):
        read_tokenizer(tmp_path / "m")


# ---------------------------------------------------------------------------------------------------------- special ids


def ids_of(tmp_path, *, generation=None, config=None, vocab=100, tokens=None):
    folder = tmp_path / "ids"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if tokens is not None:
        tokenizer(300).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return special_ids(Companions((folder,), config or {}, None, vocab))


def test_three_states(tmp_path):
    """A number, none, unknown; 0 is a number."""
    found = ids_of(tmp_path, config={"bos_token_id": 0, "pad_token_id": None})
    assert (found.bos, found.pad, found.eos, found.decoder_start) == (0, NONE, (), UNKNOWN)
    assert found.as_config() == {"bos_token_id": 0}
    assert ids_of(tmp_path, config={"pad_token_id": -1}).pad is NONE  # Llama 1's way of saying it


def test_where_ids_come_from(tmp_path):
    """generation_config.json first, then config.json, then the tokenizer; differences are noted, not more than needed."""
    found = ids_of(tmp_path, generation={"eos_token_id": [5, 6]}, config={"eos_token_id": 5, "bos_token_id": 1})
    assert (found.eos, found.bos, found.notes) == ((5, 6), 1, [])
    found = ids_of(tmp_path, generation={"eos_token_id": 7}, config={"eos_token_id": 5})
    assert found.eos == (7,) and "generation_config.json says 7, config.json 5" in found.notes[0]
    found = ids_of(tmp_path, tokens={"eos_token": "</s>", "bos_token": "<s>"})
    assert (found.eos, found.bos) == ((1,), 0)


def test_ids_outside_the_vocabulary(tmp_path):
    found = ids_of(tmp_path, config={"eos_token_id": [2, 100], "pad_token_id": 32000})
    assert found.eos == (2,) and found.pad is NONE and len(found.notes) == 2
    assert all("outside the vocabulary of 100" in note for note in found.notes)
    with pytest.raises(ConfigError, match="eos_token_id must be a token id"):
        ids_of(tmp_path, config={"eos_token_id": "</s>"})


def test_genai_gets_no_made_up_end(tmp_path):
    """No id in any file: no genai_config.json, with the reason; one given by hand is written."""
    load_tiny(tmp_path / "m", "llama", **TINY)
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / "m" / name
        data = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in data.items() if not k.endswith("_token_id")}))
    made = export(load(tmp_path / "m"), tmp_path / "a")
    assert not (tmp_path / "a" / "genai_config.json").exists() and any("--eos-id" in n for n in made.notes)
    export(load(tmp_path / "m"), tmp_path / "b", eos=(7, 9))
    model = json.loads((tmp_path / "b" / "genai_config.json").read_text())["model"]
    assert model["eos_token_id"] == [7, 9] and "pad_token_id" not in model and "bos_token_id" not in model
    file = tmp_path / "m" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 5000}))
    assert not any("genai" in f.name for f in export(load(tmp_path / "m"), tmp_path / "c").folder.iterdir())


# --------------------------------------------------------------------------------------------------------- chat templates

BROKEN = {
    "{{ x": "can't render",
    "{{ raise_exception('no system') }}": "no system",
    "{{ messages.__class__.__mro__ }}": "render",
}


def test_templates_are_found_where_transformers_finds_them(tmp_path):
    """The file before the config, named templates, an adapter's before its base's."""
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = tmp_path / "tokenizer_config.json"
    around = companions_of(tmp_path)
    assert chat_templates(around) == {}
    config.write_text(json.dumps({"chat_template": "one"}))
    assert chat_templates(around) == {"default": "one"}
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]})
    )
    assert chat_templates(around) == {"default": "d", "rag": "r"} == theirs(tmp_path).chat_template
    (tmp_path / "chat_template.jinja").write_text("file")
    assert chat_templates(around) == {"default": "file"} and theirs(tmp_path).chat_template == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert chat_templates(around) == {"default": "file", "tool_use": "tools"} == theirs(tmp_path).chat_template
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "chat_template.jinja").write_text("own")
    assert chat_templates(Companions((tmp_path / "adapter", tmp_path))) == {"default": "own"}
    config.write_text(json.dumps({"chat_template": 5}))
    (tmp_path / "chat_template.jinja").unlink()
    shutil.rmtree(tmp_path / "additional_chat_templates")
    with pytest.raises(ConfigError, match="chat_template must be"):
        chat_templates(around)


def test_rendered_as_transformers_renders(chat):
    folder, _ = chat
    messages = [{"role": "system", "content": " s "}, {"role": "user", "content": "Größe\n  👍"}]
    for template in (
        TEMPLATE,
        "{%- for m in messages -%}\n  {{ m | tojson }}\n{%- endfor %}\n{{ eos_token }}",
        "{% break %}x",
    ):
        made = theirs(folder)
        made.chat_template = template
        try:
            expected = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:
            expected = None
        try:
            assert render(template, messages, read_tokenizer(folder).named) == expected
        except InputError:
            assert expected is None


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_is_no_program(template):
    """Broken ones, refusals and attempts to leave the sandbox are one error."""
    with pytest.raises(InputError, match=BROKEN[template]):
        render(template, [{"role": "user", "content": "x"}], {})


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
@pytest.mark.parametrize("target", TARGETS)
def test_a_broken_contract_is_found(target, what, chat, tmp_path):
    """The logits are right, and what users see isn't: verify fails by name."""
    options, runtime = TARGETS[target]
    if (missing := get(runtime)[0].unavailable()) is not None:
        pytest.skip(missing)
    if target == "gguf":
        pytest.skip("these are inside the file; test_gguf.py breaks them there")
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
    from edgeformer.companions import writing

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
    assert any("three places" in note and "51" in note for note in made.notes)


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


@pytest.mark.parametrize(
    ("name", "scheme"), [("quantize_config.json", "GPTQ with 4 bits"), ("quant_config.json", "AWQ with 4 bits")]
)
def test_schemes_of_older_tools_are_named(name, scheme, tmp_path):
    hf_model(tmp_path, "llama", **TINY)
    (tmp_path / name).write_text(json.dumps({"bits": 4} if "ize" in name else {"w_bit": 4}))
    with pytest.raises(CheckpointError, match=scheme):
        load(tmp_path)


def test_a_decoder_that_embeds_is_named(tmp_path):
    hf_model(tmp_path, "qwen3", **TINY)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    assert any("pooling: lasttoken" in note for note in load(tmp_path).notes)


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
    from edgeformer.companions.pooling import read_embedder

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
    """A classifier's graph gives no logits: tools choose by `architectures` what they expect."""
    import transformers as hf

    config = hf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=60,
                           id2label={0: "a", 1: "b", 2: "c"})  # fmt: skip
    hf.BertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert any("classification head" in note for note in loaded.notes)
    export(loaded, tmp_path / "o")
    told = json.loads((tmp_path / "o" / "config.json").read_text())
    assert told["architectures"] == ["BertModel"] and "id2label" not in told
