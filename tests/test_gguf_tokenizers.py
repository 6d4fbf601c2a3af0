"""Tokenizers in GGUF files: llama.cpp's ids, and the ids of the tokenizer that is read back from a file alone.

Oracle: the package tokenizers on the original tokenizer, on code, several scripts, emoji, spaces and numbers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from family_cases import TINY
from support import STDLIB, load_tiny

from edgeformer import load
from edgeformer.api import export
from edgeformer.checkpoint.companions.gguf_pre_tokenizers import SPLITTINGS, name_of, splitting
from edgeformer.checkpoint.companions.plainness import LLAMA3
from edgeformer.checkpoint.companions.tokenizer import load_tokenizer
from edgeformer.errors import ExportError, InputError
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options

pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
runs = pytest.mark.skipif(get("llama_cpp")[0].unavailable() is not None, reason="llama-cpp-python is not installed")
TEXTS = [
    "def f(x):\n    return x + 1  # comment\n\n\nclass A:\n\tpass\n",
    "Hello, world! It's 1234567 o'clock; don't WAIT.",
    "  leading and   inner    spaces   ",
    "naïve café Ünïcödé ß 東京 こんにちは 안녕하세요 Привет مرحبا",
    "emoji 👩‍👩‍👧 🎉🇩🇪 ∑∫√ ½ ²",
    "tabs\t\tand\r\nwindows lines\r\n\r\n",
    "",
    " ",
    "\n\n\n   x",
    "x" * 70 + " " + "1" * 30,
]


CASED = ("tekken", "gpt-4o")
"""Ways of splitting by letter case, of which llama.cpp knows ASCII's."""


def byte_level_tokenizer(name: str, vocab: int = 900):
    """A small trained tokenizer that splits in the way of this name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    how = splitting(name)
    assert how is not None
    tokenizer = Tokenizer(models.BPE(ignore_merges=how.whole_words))
    tokenizer.pre_tokenizer, tokenizer.decoder = how.made(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*TEXTS * 3, (STDLIB / "NOTICE").read_text()], trainer)
    return tokenizer


def with_tokenizer(tokenizer, folder: Path, **config):
    """A tiny Llama with a tokenizer."""
    load_tiny(folder, "llama", **TINY | {"vocab_size": tokenizer.get_vocab_size() + 3} | config)
    tokenizer.save(str(folder / "tokenizer.json"))
    return load(folder)


def check(tokenizer, folder: Path, texts: list[str], theirs: list[str] | None = None):
    """llama.cpp's ids of `theirs` (by default `texts`), and those of the tokenizer that is read back from the file alone."""
    export(with_tokenizer(tokenizer, folder / "m"), folder / "g", to="gguf")
    session = require("llama_cpp")[0].open(folder / "g", Options(capacity=16))
    for text in texts if theirs is None else theirs:
        assert session.tokenize(text) == tokenizer.encode(text).ids, text
    (folder / "alone").mkdir()
    shutil.copy(folder / "g" / "model.gguf", folder / "alone" / "x.gguf")
    again = load_tokenizer(load(folder / "alone" / "x.gguf").around)
    for text in texts:
        assert again.encode(text) == tokenizer.encode(text).ids, text
    return again


@runs
@pytest.mark.parametrize("name", [name for name in SPLITTINGS if name != "default"])
def test_byte_level(name, tmp_path):
    tokenizer = byte_level_tokenizer(name)
    rules = json.loads(tokenizer.to_str())
    found = name_of(rules["pre_tokenizer"], rules["model"]["ignore_merges"])
    assert found is not None and splitting(found).steps == splitting(name).steps
    check(tokenizer, tmp_path, TEXTS, [t for t in TEXTS if t.isascii()] if name in CASED else None)


@runs
def test_a_file_without_a_name(tmp_path):
    """llama.cpp splits in its default way; so does edgeformer."""
    import gguf

    export(with_tokenizer(byte_level_tokenizer("gpt-2"), tmp_path / "m"), tmp_path / "g", to="gguf")
    old = gguf.GGUFReader(tmp_path / "g" / "model.gguf").get_field("tokenizer.ggml.pre")
    data = (tmp_path / "g" / "model.gguf").read_bytes()
    assert data.count(b"tokenizer.ggml.pre\x08") == 1 and old is not None
    (tmp_path / "g" / "model.gguf").write_bytes(data.replace(b"tokenizer.ggml.pre\x08", b"tokenizer.ggml.prf\x08"))
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=16))
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "g" / "model.gguf", tmp_path / "alone" / "x.gguf")
    again = load_tokenizer(load(tmp_path / "alone" / "x.gguf").around)
    for text in TEXTS:
        assert again.encode(text) == session.tokenize(text), text


def removing(pattern: str) -> dict:
    """Rules that keep the matches of a pattern, and nothing else."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    return {
        "type": "Sequence",
        "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}],
    }


@pytest.mark.parametrize(
    ("rules", "whole_words", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, False, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, False, None),
        ({"type": "Sequence", "pretokenizers": []}, False, None),
        ({"type": "Sequence", "pretokenizers": "x"}, False, None),
        (None, False, None),
        ("ByteLevel", False, None),
        ({"type": "Whitespace"}, False, None),
        (removing(LLAMA3), True, "llama-bpe"),
        (removing(r"\p{N}"), False, None),  # which would lose everything but the digits
    ],
)
def test_names_of_rules(rules, whole_words, name):
    assert name_of(rules, whole_words) == name


@runs
def test_the_shipped_tokenizer_gives_the_same_ids(tmp_path):
    from tokenizers import Tokenizer

    export(load(STDLIB), tmp_path / "g", to="gguf", precision="q4")
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=16))
    tokenizer = Tokenizer.from_file(str(STDLIB / "tokenizer.json"))
    for text in TEXTS:
        assert session.tokenize(text) == tokenizer.encode(text).ids, text


@runs
def test_unigram_and_sentencepiece_bpe_give_the_same_ids(tmp_path):
    pytest.importorskip("sentencepiece")
    from test_companions import slow_folder
    from tokenizers import Tokenizer, models, normalizers, processors, trainers

    from edgeformer.checkpoint.companions.tokenizer import read_tokenizer

    corpus = [*TEXTS * 3, "the quick brown fox jumps over the lazy dog " * 5]
    slow_folder("t5", tmp_path / "t5")  # SentencePiece's own normaliser tables, as T5 has them
    unigram = read_tokenizer(tmp_path / "t5").inner
    sentencepiece = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    sentencepiece.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    sentencepiece.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    data = json.loads(sentencepiece.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    sentencepiece = Tokenizer.from_str(json.dumps(data))
    sentencepiece.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    plain = ["Hello world", "the quick  brown fox", "It's 1234 o'clock.", " leading", "def f(x): return x"]
    for name, tokenizer, texts in (("unigram", unigram, plain), ("sentencepiece", sentencepiece, [*plain, *TEXTS[:2]])):
        (tmp_path / name).mkdir()
        check(tokenizer, tmp_path / name, texts)


def test_unigram_that_keeps_spaces_at_the_end_is_refused(tmp_path):
    """llama.cpp strips them wherever it merges spaces."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer, unigram.pre_tokenizer = normalizers.Replace(Regex(" {2,}"), " "), pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        TEXTS * 3, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"])
    )
    loaded = with_tokenizer(unigram, tmp_path / "m")
    with pytest.raises(ExportError, match="keeps trailing whitespace"):
        export(loaded, tmp_path / "g", to="gguf")


@runs
def test_wordpiece_gives_the_same_ids(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    texts = [*TEXTS[:3], "naïve café Ünïcödé ß", "東京 is Tokyo", "Привет", "x" * 70, ""]
    again = check(tokenizer, tmp_path, texts)
    assert again.inner.decode(again.encode("inner spaces")) == "inner spaces"


def test_a_tokenizer_without_an_equal_is_refused(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer = byte_level_tokenizer("gpt-2")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded = with_tokenizer(tokenizer, tmp_path / "m")
    with pytest.raises(ExportError, match="its pre-tokenizer"):
        export(loaded, tmp_path / "g", to="gguf")
    export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml.model": "rwkv"}, "gpt2, llama, t5, bert are supported"),
        ({"ggml.pre": "kimi-k2"}, "the pre-tokenizer 'kimi-k2'"),
        ({"ggml.model": "t5", "ggml.scores": [0.0]}, "3 tokens and 1 scores"),
        (
            {"ggml.model": "t5", "ggml.scores": [0.0] * 3, "ggml.precompiled_charsmap": [1, 2, 3]},
            "none of SentencePiece's",
        ),
        ({"ggml.model": "t5", "ggml.scores": "abc"}, "can't be read"),
        ({"ggml.model": "bert", "ggml.tokens": [1, 2, 3]}, "can't be read"),
        ({"ggml.model": "bert", "ggml.token_type": [1, 2]}, "can't be read"),
    ],
)
def test_what_is_damaged_is_one_error(changes, message):
    from edgeformer.checkpoint.companions.files import Embedded
    from edgeformer.checkpoint.companions.gguf_vocabulary import from_gguf

    data = {"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": ["a", "b", "ab"], "ggml.merges": ["a b"]}
    with pytest.raises(InputError, match=message):
        from_gguf(Embedded(Path("x.gguf"), data | changes))
