"""Convert a `tokenizer.json` to GGUF metadata, so that llama.cpp produces the same token ids.

llama.cpp identifies pre-tokenizers by name only. The name is looked up from the tokenizer's own rules; rules without a name are
refused, because token ids would silently differ. One difference is noted instead: llama.cpp does no NFC normalization.
"""

from __future__ import annotations

import base64
import ctypes
import json
import unicodedata
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.companions.chat import DEFAULT, chat_templates
from edgeformer.checkpoint.companions.files import Companions
from edgeformer.checkpoint.companions.gguf_pre_tokenizers import SPLITTINGS, name_of
from edgeformer.checkpoint.companions.special import SpecialIds, special_ids
from edgeformer.checkpoint.companions.texts import texts_of
from edgeformer.checkpoint.companions.tokenizer import Tokenizer, load_tokenizer
from edgeformer.errors import ExportError
from edgeformer.files.quoting import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types."""


def tokenizer_metadata(around: Companions, vocab: int) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.*` metadata of a model's tokenizer, chat templates and special ids, and notes for the user.

    Args:
        around: the model's companions, with a tokenizer.
        vocab: rows of the model's embedding; ids without a token become unused tokens.

    Raises:
        ExportError: llama.cpp has no equivalent tokenizer; the message names the rule.
    """
    where = around.tokenizer_folder or (around.embedded and around.embedded.file)
    tokenizer = load_tokenizer(around)
    try:
        if (text := tokenizer.to_json()) is None:
            raise ExportError(_refusal("it is a slow tokenizer of transformers without a tokenizer.json"))
        found, notes = _metadata(tokenizer, json.loads(text), vocab, special_ids(around))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        reason = f"{type(e).__name__}: {e}"
        raise ExportError(
            f"the tokenizer of {where} can't be converted to GGUF metadata ({reason});"
            " use --no-tokenizer to write the weights alone"
        ) from e
    templates = chat_templates(around)
    found |= {"chat_template" if name == DEFAULT else f"chat_template.{name}": text for name, text in templates.items()}
    if more := [name for name in templates if name != DEFAULT]:
        found["chat_templates"] = more
    return {f"tokenizer.{k}": v for k, v in found.items()}, notes


def _metadata(
    tokenizer: Tokenizer, data: dict[str, Any], vocab: int, ids: SpecialIds
) -> tuple[dict[str, Any], list[str]]:
    kind = data["model"].get("type")
    makers = {"BPE": _bpe, "Unigram": _unigram, "WordPiece": _wordpiece}
    if kind not in makers:
        raise ExportError(_refusal(f"its model type is {kind}; supported types are {', '.join(makers)}"))
    tokens, types, more = makers[kind](data, vocab)
    for added in data.get("added_tokens", ()):
        if added["id"] >= vocab:
            raise ExportError(
                f"the added token {added['content']!r} has id {added['id']}, but the model's embedding has only {vocab} rows"
            )
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = data["model"].get("unk_id") if kind == "Unigram" else _id(data, data["model"].get("unk_token"))
    if unknown is not None:
        types[unknown] = UNKNOWN
    first, last = _template(tokenizer)
    notes = []
    if composes(data):
        notes.append(
            "the tokenizer applies NFC normalization and llama.cpp doesn't: decomposed text gets different token ids there"
        )
    if kind == "WordPiece":
        notes.append(
            "llama.cpp strips accents by its own rules: Hangul, kana or Arabic text may get different token ids there"
        )
    stripping = [
        t["content"] for t in data.get("added_tokens", ()) if t.get("lstrip") or t.get("rstrip") or t.get("single_word")
    ]
    if stripping:
        notes.append(f"{', '.join(stripping[:5])} absorb adjacent spaces, which llama.cpp may not do")
    found = {
        "tokens": tokens,
        "token_type": types,
        "add_bos_token": first is not None,
        "add_eos_token": last is not None,
        **({"unknown_token_id": unknown} if unknown is not None else {}),
        **more,
        **_ends(tokenizer, tokens, ids, last, notes),
    }
    special = {"bos_token_id": first if first is not None else ids.bos, "padding_token_id": ids.pad}
    found |= {k: v for k, v in special.items() if isinstance(v, int) and 0 <= v < vocab}
    return {f"ggml.{k}": v for k, v in found.items()}, notes


def composes(data: dict[str, Any]) -> bool:
    """Whether a byte-level tokenizer applies NFC normalization, which llama.cpp doesn't."""
    return data["model"].get("type") == "BPE" and (data.get("normalizer") or {}).get("type") == "NFC"


_ENDS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>",
    "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "< EOT >", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
    "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
))  # fmt: skip
"""Token texts that llama.cpp treats as end of generation regardless of the metadata (src/llama-vocab.cpp)."""


def _ends(
    tokenizer: Tokenizer, tokens: list[str], ids: SpecialIds, last: int | None, notes: list[str]
) -> dict[str, int]:
    """The ids that end generation. GGUF has three keys for them: end of text (EOS), of turn (EOT) and of message (EOM)."""
    own = tokenizer.id_of(tokenizer.named.get("eos_token", ""))
    ends = list(ids.eos) or ([last] if last is not None else [])
    if not ends:
        return {}
    first = own if own in ends else ends[0]
    others = sorted((i for i in ends if i != first), key=lambda i: (tokens[i] in _ENDS, "eom" in tokens[i]))
    places = {"eos_token_id": first, **dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))}
    if lost := [i for i in others[2:] if tokens[i] not in _ENDS]:
        said = ", ".join(f"{i} ({tokens[i]})" for i in lost)
        notes.append(f"GGUF has keys for only three end-of-text ids; llama.cpp will not stop at {said}")
    return places


def tokenizer_limits(around: Companions) -> dict[str, bool]:
    """Known differences of llama.cpp's tokenizer, as the notes describe them: no NFC normalization (`composes`), and its own
    accent stripping (`wordpiece`)."""
    data = json.loads(load_tokenizer(around).to_json() or "{}")
    return {"composes": composes(data), "wordpiece": data["model"].get("type") == "WordPiece"}


def check_in_llama_cpp(around: Companions, file: Path) -> None:
    """Compare llama.cpp's token ids for a fixed set of texts with the model's own, if llama-cpp-python is installed.

    Raises:
        ExportError: they differ; the message has the text and both lists of ids.
    """
    try:
        import llama_cpp
    except ImportError:
        return
    _silence(llama_cpp)
    source, limits = load_tokenizer(around), tokenizer_limits(around)
    texts = [t for t in texts_of(source) if t]
    if limits["composes"]:
        texts = [t for t in texts if t == unicodedata.normalize("NFC", t)]
    if limits["wordpiece"]:
        texts = [t for t in texts if t.isascii()]
    try:
        llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    except Exception as e:  # from llama.cpp, or from Jinja, which compiles the chat template there
        raise ExportError(
            f"llama.cpp can't load the file with this tokenizer and chat template: {shown(str(e))}"
        ) from e
    try:
        for text in texts:
            given = llama.tokenize(text.encode(), add_bos=True, special=True)
            if given != (wanted := source.encode(text)):
                raise ExportError(
                    f"llama.cpp tokenizes {shown(text)} to {shown(given)}, the model's tokenizer to {shown(wanted)};"
                    " use --no-tokenizer to write the weights alone"
                )
    finally:
        llama.close()


_log: Any = None


def _silence(llama_cpp: Any) -> None:
    """Discard llama.cpp's log, which warns about a context that a vocabulary alone doesn't have. The callback lives as long as
    the module."""
    global _log
    _log = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


def _refusal(reason: str) -> str:
    return (
        f"edgeformer can't convert this tokenizer to GGUF: {reason}. Use --no-tokenizer to write the weights alone (llama.cpp"
        " then takes token ids only)"
    )


def _id(data: dict[str, Any], token: str | None) -> int | None:
    vocab = data["model"]["vocab"]
    return vocab.get(token) if isinstance(vocab, dict) and token is not None else None


def _template(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The ids that encoding adds before and after a text; None where it adds none."""
    plain, full = tokenizer.encode("a", special=False), tokenizer.encode("a")
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
    if at is None or at > 1 or len(full) - at - len(plain) > 1:
        raise ExportError(_refusal(f"it adds several special tokens before or after a text ({full})"))
    return (full[0] if at else None), (full[-1] if len(full) > at + len(plain) else None)


def _listed(vocab: dict[str, int], count: int) -> tuple[list[str], list[int]]:
    if vocab and max(vocab.values()) >= count:
        raise ExportError(
            f"the tokenizer has ids up to {max(vocab.values())}, but the model's embedding has only {count} rows"
        )
    tokens, types = [f"[UNUSED{i}]" for i in range(count)], [UNUSED] * count
    for token, i in vocab.items():
        tokens[i], types[i] = token, NORMAL
    return tokens, types


def _bpe(data: dict[str, Any], count: int) -> tuple[list[str], list[int], dict[str, Any]]:
    model = data["model"]
    if model.get("byte_fallback"):
        return _sentencepiece(data, count)
    for rule in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(rule):
            raise ExportError(_refusal(f"its BPE has {rule} = {model[rule]!r}"))
    if data.get("normalizer") and data["normalizer"].get("type") != "NFC":
        raise ExportError(_refusal(f"its BPE has an unsupported normalizer ({data['normalizer'].get('type')})"))
    tokens, types = _listed(model["vocab"], count)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tokens, types, {"model": "gpt2", "pre": pre_tokenizer_name(data), "merges": merges}


def pre_tokenizer_name(data: dict[str, Any]) -> str:
    """llama.cpp's name for a byte-level BPE's pre-tokenizer.

    Raises:
        ExportError: llama.cpp has no name for its rules.
    """
    rules, whole_words = data.get("pre_tokenizer") or {}, bool(data["model"].get("ignore_merges", False))
    if (name := name_of(rules, whole_words)) is None:
        known = ", ".join(SPLITTINGS)
        raise ExportError(_refusal(f"its pre-tokenizer ({json.dumps(rules)[:300]}) is not a known one ({known})"))
    return name


def _sentencepiece(data: dict[str, Any], count: int) -> tuple[list[str], list[int], dict[str, Any]]:
    """BPE with byte fallback (Llama 2): llama.cpp merges by the merged token's score, so scores are negated merge ranks."""
    prefix = _prefix_space(data)
    tokens, types = _listed(data["model"]["vocab"], count)
    scores = [-1e6] * count
    for rank, merge in enumerate(data["model"]["merges"]):
        joined = merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
        at = data["model"]["vocab"].get(joined)
        if at is not None and scores[at] == -1e6:
            scores[at] = -float(rank)
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
    return tokens, types, {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}


def _prefix_space(data: dict[str, Any]) -> bool:
    """Whether Llama 2's rules (spaces become ▁, no pre-tokenization) prepend a space to the text."""
    normalizer, split = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    kinds = [s["type"] for s in steps]
    if not split and kinds in (["Prepend", "Replace"], ["Replace"]):
        return kinds[0] == "Prepend"
    if not steps and split.get("type") == "Metaspace" and not split.get("split", True):
        if split.get("prepend_scheme") in ("always", "first"):
            return True
        if split.get("prepend_scheme") == "never":
            return False
    raise ExportError(_refusal("its BPE with byte fallback handles spaces differently from Llama 2's"))


def _unigram(data: dict[str, Any], count: int) -> tuple[list[str], list[int], dict[str, Any]]:
    """SentencePiece unigram model (T5): llama.cpp needs the same normalizer tables."""
    pieces = data["model"]["vocab"]
    if len(pieces) > count:
        raise ExportError(f"the tokenizer has {len(pieces)} ids, but the model's embedding has only {count} rows")
    tokens, types = _listed({piece: i for i, (piece, _) in enumerate(pieces)}, count)
    scores = [score for _, score in pieces] + [-1e6] * (count - len(pieces))
    charsmap, merges, strips = _unigram_normalizer(data)
    split = data.get("pre_tokenizer") or {}
    steps = split["pretokenizers"] if split.get("type") == "Sequence" else [split]
    kinds = [s.get("type") for s in steps]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise ExportError(_refusal(f"its unigram model has an unsupported pre-tokenizer ({kinds})"))
    metaspace, words = steps[-1], kinds[0] == "WhitespaceSplit"
    prefix = (
        metaspace.get("prepend_scheme", "always" if metaspace.get("add_prefix_space", True) else "never") != "never"
    )
    if merges and not strips and not words:
        raise ExportError(
            _refusal("it merges spaces but keeps trailing whitespace, which llama.cpp strips whenever it merges spaces")
        )
    merge_spaces = merges or words
    more = {"model": "t5", "pre": "default", "scores": scores, "add_space_prefix": prefix}
    if charsmap:
        more["precompiled_charsmap"] = charsmap
    return tokens, types, more | {"remove_extra_whitespaces": merge_spaces}


def _unigram_normalizer(data: dict[str, Any]) -> tuple[bytes, bool, bool]:
    """The precompiled character map, whether runs of spaces are merged, and whether trailing whitespace is stripped."""
    normalizer = data.get("normalizer")
    steps = [] if not normalizer else normalizer.get("normalizers", [normalizer])
    charsmap, merges, strips = b"", False, False
    for step in steps:
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": table}:
                charsmap = base64.b64decode(table or "")
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "▁"}:
                merges = True
            case {"type": "Strip", "strip_left": False, "strip_right": True}:
                strips = True
            case _:
                raise ExportError(
                    _refusal(f"its unigram model has an unsupported normalizer ({json.dumps(step)[:120]})")
                )
    return charsmap, merges, strips


def _wordpiece(data: dict[str, Any], count: int) -> tuple[list[str], list[int], dict[str, Any]]:
    """BERT's WordPiece: llama.cpp marks the beginning of a word (▁), WordPiece its continuation (##)."""
    model, normalizer = data["model"], data.get("normalizer") or {}
    if model.get("continuing_subword_prefix") != "##" or normalizer.get("type") != "BertNormalizer":
        raise ExportError(_refusal("its WordPiece differs from BERT's (prefix ## and BertNormalizer)"))
    if not normalizer.get("handle_chinese_chars", True):
        raise ExportError(_refusal("it doesn't split Chinese characters, and llama.cpp's WordPiece does"))
    lower, strips = bool(normalizer.get("lowercase")), normalizer.get("strip_accents")
    strips = lower if strips is None else bool(strips)
    kept = {} if lower and strips else {"normalizer.lowercase": lower, "normalizer.strip_accents": strips}
    tokens, types = _listed(model["vocab"], count)
    special = {added["content"] for added in data.get("added_tokens", ())}
    marked = [
        t if t in special or types[i] == UNUSED else t[2:] if t.startswith("##") else "▁" + t
        for i, t in enumerate(tokens)
    ]
    ids = {"cls_token_id": "[CLS]", "seperator_token_id": "[SEP]", "mask_token_id": "[MASK]"}
    found = {key: model["vocab"][token] for key, token in ids.items() if token in model["vocab"]}
    return marked, types, {"model": "bert", "pre": "default", **found, **kept}
