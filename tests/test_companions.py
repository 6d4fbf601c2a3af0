"""What surrounds the weights: tokenizers, special ids, templates, other files. Oracle: transformers, each target's own tool."""

from __future__ import annotations

import json
import shutil

import pytest
from chat_model import TEMPLATE, chat_model, tokenizer
from family_cases import TINY
from support import load_tiny

from edgeformer.api import export
from edgeformer.checkpoint.companions.chat import chat_templates, render
from edgeformer.checkpoint.companions.files import Companions, companions_of
from edgeformer.checkpoint.companions.special import NONE, UNKNOWN, decoder_start, special_ids
from edgeformer.checkpoint.companions.texts import TEXTS, texts_of
from edgeformer.checkpoint.companions.tokenizer import load_tokenizer, read_tokenizer
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ConfigError, InputError

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
    from edgeformer.checkpoint.companions.writing import write_companions

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


def test_how_decoders_begin(tmp_path):
    """As transformers does: what a file gives; else T5's padding token, which is 0 by default, or `bos`."""
    cases: list[tuple[dict, int]] = [
        ({"model_type": "t5"}, 0),
        ({"model_type": "mt5", "pad_token_id": 3, "bos_token_id": 1}, 3),
        ({"model_type": "t5", "decoder_start_token_id": 7, "pad_token_id": 3}, 7),
        ({"model_type": "bart", "bos_token_id": 1, "pad_token_id": 3}, 1),
    ]
    for config, first in cases:
        assert decoder_start(Companions((tmp_path,), config, None, 300)) == first, config
    none: list[dict] = [{"model_type": "bart"}, {"model_type": "t5", "pad_token_id": None}]
    for config in none:
        with pytest.raises(ConfigError, match="no decoder_start_token_id"):
            decoder_start(Companions((tmp_path,), config, None, 300))


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
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
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
