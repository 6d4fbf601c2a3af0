"""What transformers' classes and templates are given beside the files. Oracle: AutoTokenizer and transformers' own rendering."""

from __future__ import annotations

import json

import pytest
from chat_model import tokenizer
from test_companions import same_ids, theirs

from edgeformer.checkpoint.companions.chat import render
from edgeformer.checkpoint.companions.files import companions_of
from edgeformer.checkpoint.companions.texts import TEXTS
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer

PASSED = {  # a template -> what it makes: transformers passes tools and documents, None without any, and knows `generation`
    "{% if tools is not none %}T{{ tools | tojson }}{% endif %}x": "x",
    "{% if tools is defined %}D{% endif %}{{ documents }}": "DNone",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}!{% endfor %}": "hi!",
}


@pytest.mark.parametrize("template", PASSED)
def test_what_templates_are_given(template):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "hi"}]
    assert render(template, messages, {}) == PASSED[template]
    assert render_jinja_template(conversations=[messages], chat_template=template)[0] == [PASSED[template]]


CLASSES_OVER_FILES = {
    "do_lower_case": ("BertTokenizer", {"do_lower_case": False}),
    "accents and Chinese": (
        "BertTokenizer",
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    ),
    "add_prefix_space": ("GPT2Tokenizer", {"add_prefix_space": True}),
    "nothing said": ("GPT2Tokenizer", {}),
}


@pytest.mark.parametrize("name", CLASSES_OVER_FILES)
def test_settings_that_a_class_takes_over_its_file(name, tmp_path):
    """Where tokenizer_config.json and tokenizer.json disagree, as after an edit by hand: the artefact's file says the outcome."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    from edgeformer.checkpoint.companions.writing import write_companions

    kind, settings = CLASSES_OVER_FILES[name]
    if kind == "BertTokenizer":
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *"abcdefghijklmnopqrstuvwxyzéAB你好,!'",
            "##l",
            "##o",
            "##e",
        ]
        made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        made.add_special_tokens(words[:5])
    else:
        data = json.loads(tokenizer().to_str()) | {"added_tokens": [], "post_processor": None}
        data["model"]["vocab"]["<|endoftext|>"] = len(data["model"]["vocab"])
        made = Tokenizer.from_str(json.dumps(data))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **settings}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert" if kind == "BertTokenizer" else "gpt2"}))
    same_ids(tmp_path)
    assert set(read_tokenizer(tmp_path).named.values()) <= set(theirs(tmp_path).all_special_tokens)
    assert read_tokenizer(tmp_path).named  # by the class, where no file names them
    (tmp_path / "out").mkdir()
    write_companions(companions_of(tmp_path), tmp_path / "out")
    bare = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert all(bare.encode(t).ids == read_tokenizer(tmp_path).encode(t) for t in TEXTS)


def test_named_tokens_of_a_dict(tmp_path):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"image_token": "<image>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    made = read_tokenizer(tmp_path)
    assert made.named == {"image_token": "<image>"} and made.id_of("<image>") == 400
    assert made.encode("a<image>b") == theirs(tmp_path)("a<image>b")["input_ids"]
