"""Convert a GGUF file's tokenizer to one of the package `tokenizers`: the inverse of `export/gguf/tokenizer.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.companions.files import Embedded
from edgeformer.checkpoint.companions.plainness import GPT2, LLAMA3, QWEN2
from edgeformer.checkpoint.companions.tokenizer_kinds import FastTokenizer
from edgeformer.errors import InputError, is_fault
from edgeformer.files.quoting import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

MAX_TOKEN = 1000
"""Characters of a token; SentencePiece allows 16 by default. Every way to split a token in two is tried."""
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
PATTERNS = {QWEN2: "qwen2", LLAMA3: "llama-bpe", GPT2: "gpt-2"}
"""Pattern by which byte-level tokenizers split text -> llama.cpp's name for it."""
_SAME = {
    **dict.fromkeys(("llama3", "llama-v3"), "llama-bpe"),
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell"), "smollm"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez"), "qwen2"),
}
"""llama.cpp's aliases for the same way of splitting."""


def from_gguf(embedded: Embedded) -> FastTokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        InputError: it is damaged or of an unsupported kind; the message says which.
    """
    from tokenizers import AddedToken, Tokenizer

    data, where = embedded.metadata, embedded.file
    kind = data.get("ggml.model")
    try:
        tokens, types = list(data["ggml.tokens"]), list(data.get("ggml.token_type") or [])
        types = types or [1] * len(tokens)
        if kind == "gpt2":
            inner = Tokenizer(_byte_level(data, tokens, types, str(where)))
            _split(inner, _pre(data, str(where)))
        elif kind == "llama":
            inner = _sentencepiece(data, tokens, types, str(where))
        else:
            raise InputError(
                f"{where} holds a tokenizer of kind {shown(kind)}; gpt2 and llama are supported. Put the original"
                " tokenizer.json beside it, or give token ids"
            )
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
    found = {f"{ours}_token": data.get(f"ggml.{theirs}_token_id") for theirs, ours in keys.items()}
    return {name: tokens[i] for name, i in found.items() if isinstance(i, int) and 0 <= i < len(tokens)}


def _pre(data: dict[str, Any], where: str) -> str:
    name = str(data.get("ggml.pre", "default"))
    name = _SAME.get(name, name)
    if name not in (*PATTERNS.values(), "smollm"):
        raise InputError(
            f"{where}: the pre-tokenizer {shown(name)} (tokenizer.ggml.pre) is not supported;"
            f" {', '.join((*PATTERNS.values(), 'smollm'))} are. Put the original tokenizer.json beside it, or give token ids"
        )
    return name


def _byte_level(data: dict[str, Any], tokens: list[str], types: list[int], where: str) -> BPE:
    from tokenizers.models import BPE

    vocab = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED}
    merges = [tuple(m.split(" ", 1)) for m in data["ggml.merges"]]
    return BPE(vocab=vocab, merges=merges, ignore_merges=_pre(data, where) == "llama-bpe")


def _split(inner: Tokenizer, pre: str) -> None:
    from tokenizers import Regex, decoders, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "gpt-2":
        inner.pre_tokenizer = whole
    elif pre == "smollm":
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    else:
        pattern = next(p for p, name in PATTERNS.items() if name == pre)
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bare])
    inner.decoder = decoders.ByteLevel()


def _sentencepiece(data: dict[str, Any], tokens: list[str], types: list[int], where: str) -> Tokenizer:
    """BPE with byte fallback; merges are ordered by the score of the token that they make."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    vocab = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED}
    scores = data["ggml.scores"]
    if longest := next((t for t in vocab if len(t) > MAX_TOKEN), None):
        raise InputError(
            f"{where}: its tokenizer has a token of {len(longest):,} characters; at most {MAX_TOKEN} are supported"
        )
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
    return inner


def _surround(inner: Tokenizer, data: dict[str, Any], named: dict[str, str]) -> None:
    """Set the special tokens that surround every text."""
    from tokenizers import processors

    llama = data.get("ggml.model") == "llama"
    first = named.get("bos_token") if data.get("ggml.add_bos_token", llama) else None
    last = named.get("eos_token") if data.get("ggml.add_eos_token", False) else None
    if first is None and last is None:
        return
    around = [t for t in (first, last) if t is not None]
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    inner.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(p.replace("$A", "$B") + ":1" for p in single)],
        special_tokens=[(t, inner.token_to_id(t)) for t in dict.fromkeys(around)],
    )
