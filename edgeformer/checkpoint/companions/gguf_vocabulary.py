"""Convert a GGUF file's tokenizer to one of the package `tokenizers`: the inverse of `export/gguf/tokenizer.py`."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.companions.files import Embedded
from edgeformer.checkpoint.companions.gguf_pre_tokenizers import SPLITTINGS, Splitting, splitting
from edgeformer.checkpoint.companions.plainness import is_usual_charsmap
from edgeformer.checkpoint.companions.tokenizer_kinds import FastTokenizer
from edgeformer.errors import InputError, is_fault
from edgeformer.files.quoting import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKEN = 1000
"""Characters of a token; SentencePiece allows 16 by default. Every way to split a token in two is tried."""
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


def from_gguf(embedded: Embedded) -> FastTokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        InputError: it is damaged or of an unsupported kind; the message says which.
    """
    from tokenizers import AddedToken

    data, where = embedded.metadata, embedded.file
    kind = data.get("ggml.model")
    try:
        tokens, types = list(data["ggml.tokens"]), list(data.get("ggml.token_type") or [])
        types = types or [1] * len(tokens)
        if longest := next((t for t in tokens if len(t) > MAX_TOKEN), None):
            raise InputError(
                f"{where}: its tokenizer has a token of {len(longest):,} characters; at most {MAX_TOKEN} are supported"
            )
        if kind not in _KINDS:
            raise InputError(
                f"{where} holds a tokenizer of kind {shown(kind)}; {', '.join(_KINDS)} are supported. Put the original"
                " tokenizer.json beside it, or give token ids"
            )
        tokens, inner = _KINDS[kind](data, tokens, types, str(where))
        special = [
            AddedToken(t, special=kind == CONTROL, normalized=False)
            for t, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
        inner.add_tokens(special)
        named = _named(data, tokens)
        _surround(inner, data, named)
    except InputError:
        raise
    except BaseException as e:  # tokenizers raises bare Exceptions and panics, and metadata may hold anything
        if not is_fault(e):
            raise
        raise InputError(f"{where}: its tokenizer can't be read: {type(e).__name__}: {shown(str(e))}") from e
    if (
        wrong := next((i for i, t in enumerate(tokens) if types[i] != UNUSED and inner.token_to_id(t) != i), None)
    ) is not None:
        raise InputError(f"{where}: its tokenizer can't be read: the token {shown(tokens[wrong])} occurs twice")
    return FastTokenizer(inner, named)


def _named(data: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    keys = {
        "bos": "bos",
        "eos": "eos",
        "unknown": "unk",
        "padding": "pad",
        "seperator": "sep",
        "cls": "cls",
        "mask": "mask",
    }
    found = {f"{ours}_token": _special(data, theirs) for theirs, ours in keys.items()}
    return {name: tokens[i] for name, i in found.items() if isinstance(i, int) and 0 <= i < len(tokens)}


_USUAL_IDS: dict[Any, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "mask": 103, "padding": 0},
}
"""llama.cpp's special ids of files that name none, by kind of tokenizer."""


def _special(data: dict[str, Any], name: str) -> int:
    """A special token's id; -1 without one."""
    given = data.get(f"ggml.{name}_token_id", _USUAL_IDS.get(data.get("ggml.model"), {}).get(name))
    return given if type(given) is int else -1


def _pre(data: dict[str, Any], where: str) -> Splitting:
    name = str(data.get("ggml.pre", "default"))
    if (found := splitting(name)) is None:
        raise InputError(
            f"{where}: the pre-tokenizer {shown(name)} (tokenizer.ggml.pre) is not supported; {', '.join(SPLITTINGS)} and their"
            " like are. Put the original tokenizer.json beside it, or give token ids"
        )
    return found


Made = tuple[list[str], "Tokenizer"]
"""The tokens as the package `tokenizers` spells them, and the tokenizer."""


def _byte_level(data: dict[str, Any], tokens: list[str], types: list[int], where: str) -> Made:
    """Byte-level BPE."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    vocab = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED}
    merges = [tuple(m.split(" ", 1)) for m in data["ggml.merges"]]
    how = _pre(data, where)
    inner = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=how.whole_words))
    inner.pre_tokenizer = how.made()
    inner.decoder = decoders.ByteLevel()
    return tokens, inner


def _unigram(data: dict[str, Any], tokens: list[str], types: list[int], where: str) -> Made:
    """SentencePiece's unigram model, with the normalizer's tables (T5, XLM-R)."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    scores = data["ggml.scores"]
    if len(scores) != len(tokens):
        raise InputError(f"{where}: its tokenizer has {len(tokens)} tokens and {len(scores)} scores")
    if not all(math.isfinite(score) for score in scores):
        raise InputError(f"{where}: its tokenizer has a score that isn't finite")
    unknown = next((i for i, kind in enumerate(types) if kind == UNKNOWN), None)
    if unknown is None and 0 <= (given := _special(data, "unknown")) < len(tokens):
        unknown = given
    count = max((i + 1 for i, kind in enumerate(types) if kind != UNUSED), default=0)  # padding of the embedding
    pieces = [(t, float(s)) for t, s in zip(tokens[:count], scores, strict=False)]
    inner = Tokenizer(Unigram(pieces, unk_id=unknown, byte_fallback=BYTE in types))
    steps, table = [], data.get("ggml.precompiled_charsmap")
    merged = bool(data.get("ggml.remove_extra_whitespaces", False))
    if table:
        compiled = bytes(byte & 255 for byte in table)
        if not is_usual_charsmap(base64.b64encode(compiled).decode()):
            raise InputError(
                f"{where}: the tokenizer's normalization table (tokenizer.ggml.precompiled_charsmap) is none of SentencePiece's"
                " own, and a damaged one can run forever. Put the original tokenizer.json beside it, or give token ids"
            )
        steps.append(normalizers.Precompiled(compiled))
    if merged:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if steps:
        inner.normalizer = normalizers.Sequence(steps)
    prefix = "always" if data.get("ggml.add_space_prefix", True) else "never"
    space = pre_tokenizers.Metaspace("▁", prepend_scheme=prefix)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space]) if merged else space
    inner.decoder = decoders.Metaspace("▁", prepend_scheme=prefix)
    return tokens[:count] + [f"[UNUSED{i}]" for i in range(count, len(tokens))], inner


def _wordpiece(data: dict[str, Any], tokens: list[str], types: list[int], where: str) -> Made:
    """BERT's WordPiece: the file marks the beginning of a word (▁), WordPiece its continuation (##)."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    raw = (CONTROL, USER_DEFINED, UNUSED, UNKNOWN)
    named = {_special(data, name) for name in ("unknown", "cls", "seperator", "mask", "padding", "bos", "eos")}
    spelled = [
        t if types[i] in raw or i in named else t[1:] if t.startswith("▁") else "##" + t for i, t in enumerate(tokens)
    ]
    vocab = {t: i for i, t in enumerate(spelled) if types[i] != UNUSED}
    unknown = _special(data, "unknown")
    name = spelled[unknown] if 0 <= unknown < len(spelled) else "[UNK]"
    inner = Tokenizer(WordPiece(vocab, unk_token=name, max_input_chars_per_word=100))
    lower = bool(data.get("ggml.normalizer.lowercase", True))
    accents = bool(data.get("ggml.normalizer.strip_accents", lower))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=accents)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return spelled, inner


def _sentencepiece(data: dict[str, Any], tokens: list[str], types: list[int], where: str) -> Made:
    """BPE with byte fallback; merges are ordered by the score of the token that they make."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    vocab = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED}
    scores = data["ggml.scores"]
    merges = []
    for token, i in vocab.items():
        if types[i] in (UNKNOWN, CONTROL) or scores[i] <= -1e6:
            continue
        pairs = [(token[:n], token[n:]) for n in range(1, len(token)) if token[:n] in vocab and token[n:] in vocab]
        merges += [(-scores[i], vocab[a], vocab[b], (a, b)) for a, b in pairs]
    unknown = next((t for t, i in vocab.items() if types[i] == UNKNOWN), None)
    inner = Tokenizer(
        BPE(vocab=vocab, merges=[m[3] for m in sorted(merges)], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(data.get("ggml.add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokens, inner


_KINDS: dict[Any, Callable[[dict[str, Any], list[str], list[int], str], Made]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "t5": _unigram,
    "bert": _wordpiece,
}
"""llama.cpp's kind of tokenizer (`tokenizer.ggml.model`) -> its reader."""


def _surround(inner: Tokenizer, data: dict[str, Any], named: dict[str, str]) -> None:
    """Set the special tokens that surround every text. Where the file doesn't say, they are llama.cpp's for the kind."""
    from tokenizers import processors

    kind = data.get("ggml.model")
    how = splitting(str(data.get("ggml.pre", "default"))) if kind == "gpt2" else None
    begins = kind in ("llama", "bert") or (how is not None and how.bos)
    ends = data.get("ggml.add_eos_token", kind in ("t5", "bert")) or (
        kind == "bert" and data.get("ggml.add_sep_token", False)
    )
    names = ("sep_token", "eos_token") if kind == "bert" else ("eos_token", "sep_token")
    first = named.get("bos_token", named.get("cls_token")) if data.get("ggml.add_bos_token", begins) else None
    last = next((named[name] for name in names if name in named), None) if ends else None
    if first is None and last is None:
        return
    around = [t for t in (first, last) if t is not None]
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    inner.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(p.replace("$A", "$B") + ":1" for p in single)],
        special_tokens=[(t, inner.token_to_id(t)) for t in dict.fromkeys(around)],
    )
