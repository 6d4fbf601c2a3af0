"""Whether a tokenizer.json holds only parts whose time and memory are known to grow in proportion to the text."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from edgeformer.files.limits import MAX_SIZE
from edgeformer.files.quoting import shown

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_KNOWN = frozenset((
    QWEN2, LLAMA3, GPT2, LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:[sdmt]|ll|ve|re)"),
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[一-龥぀-ゟ゠-ヿ]+", "[一-龥ࠀ-一가-퟿]+", r"\s?\p{L}+", r"\s?\p{P}+", r"\s?\p{N}+", r" {2,}", r"\d{1,3}", r"\p{N}{1,3}",
))  # fmt: skip
"""The patterns of the best-known tokenizers: GPT-2, Llama 3, Qwen 2, GPT-4o, DeepSeek."""
_ATOM = r"(?:\\[dDsSwWnrtpP](?:\{\^?\w+\})?|\\[^\w]|\[[^\[\]]*\]|[^\\\[\](){}*+?|^$.]|\.)"
_LINEAR = re.compile(rf"(?:{_ATOM})*|{_ATOM}\+|\^?{_ATOM}\{{\d{{1,3}}(?:,\d{{0,3}})?\}}")
"""Patterns without repetition, or of one repeated character: they match in only one way."""
_TYPES = frozenset(
    ("BPE", "WordPiece", "Unigram", "WordLevel", "Sequence", "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase")
    + ("StripAccents", "Strip", "Prepend", "Precompiled", "Replace", "ByteLevel", "Split", "Digits", "Whitespace")
    + ("WhitespaceSplit", "BertPreTokenizer", "Metaspace", "Punctuation", "UnicodeScripts", "CharDelimiterSplit")
    + ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteFallback", "Fuse", "CTC", "BPEDecoder", "FixedLength")
)  # fmt: skip
_CHARSMAPS = (
    "22342cc048ea558ae308e80926aa9361", "de92dc72e0a889f99b2625eb6fab03e9", "f0d7aebc9f5b7ef32a4ed371eab71572",
    "916ce70b049ab7ff559a1853fdac0a02",
)  # fmt: skip
"""SHA-256, cut to 128 bits, of the tables nmt_nfkc, nfkc, nmt_nfkc_cf and nfkc_cf of SentencePiece 0.2, in base64."""
_GROWTH, _TEXT, _WORD = 256, 64, 1000
"""Limits: growth of a text over all steps, in bytes; characters of one replacement; characters of a word."""


def odd_id(data: dict[str, Any]) -> str | None:
    """Describe the first token whose id can't be a row of an embedding; None if all can.

    The package `tokenizers` allocates memory for every id below the largest.
    """
    model = data.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    entries = list(vocab.items()) if isinstance(vocab, dict) else []
    if isinstance(added := data.get("added_tokens"), list):
        entries += [(entry.get("content"), entry.get("id")) for entry in added if isinstance(entry, dict)]
    found = next(((token, i) for token, i in entries if type(i) is not int or not 0 <= i < MAX_SIZE), None)
    return None if found is None else f"the token {shown(found[0])} has the id {shown(found[1])}"


def is_plain(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json can be run without a guard.

    data: its content, of any structure.
    """
    growth, model = 1, data.get("model")
    word = model.get("max_input_chars_per_word", 100) if isinstance(model, dict) else 100
    if type(word) is not int or word > _WORD:  # WordPiece tries all pieces of a word
        return False
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for node in _nodes(data.get(part)):
            if "type" in node and node["type"] not in _TYPES:
                return False
            if "precompiled_charsmap" in node and not is_usual_charsmap(node["precompiled_charsmap"]):
                return False
            pattern = node.get("pattern")
            if pattern is not None and not _plain_pattern(pattern):
                return False
            if node.get("type") == "ByteLevel" and part != "decoder":  # bytes that are not ASCII double
                growth *= 2
            for key in ("content", "prepend", "replacement"):
                if not isinstance(text := node.get(key), str):
                    continue
                if len(text) > _TEXT:
                    return False
                growth *= max(len(text.encode("utf-8", "replace")), 1)
    return growth <= _GROWTH


def _plain_pattern(pattern: object) -> bool:
    if not isinstance(pattern, dict):
        return False
    if isinstance(text := pattern.get("String"), str):
        return 0 < len(text) <= _TEXT
    regex = pattern.get("Regex")
    return isinstance(regex, str) and (
        regex in _KNOWN or (len(regex) <= _TEXT and _LINEAR.fullmatch(regex) is not None)
    )


def is_usual_charsmap(text: object) -> bool:
    """Whether a normalization table, in base64, is one of SentencePiece's own."""
    return isinstance(text, str) and hashlib.sha256(text.encode("ascii", "replace")).hexdigest()[:32] in _CHARSMAPS


def _nodes(value: object) -> list[dict[str, Any]]:
    """Every object in a value."""
    found, waiting = [], [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            found.append(current)
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current
    return found
