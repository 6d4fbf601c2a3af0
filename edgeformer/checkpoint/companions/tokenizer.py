"""The tokenizer of a model, read by the rules of transformers.

A tokenizer is more than tokenizer.json. The truncation and padding that were last used are saved in it, and are ignored;
tokens that appear only in tokenizer_config.json (`added_tokens_decoder`), added_tokens.json or special_tokens_map.json belong
to it; and without a tokenizer.json, it is converted from the files of the slow tokenizer.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.companions.files import Companions, files_of_tokenizer, read_object
from edgeformer.checkpoint.companions.guarded import Guarded, GuardedFailed
from edgeformer.checkpoint.companions.guarded_tokenizer import GuardedTokenizer
from edgeformer.checkpoint.companions.plainness import is_plain, odd_id
from edgeformer.checkpoint.companions.tokenizer_kinds import FastTokenizer, SlowTokenizer, Tokenizer, asked
from edgeformer.errors import ConfigError, InputError
from edgeformer.files.json_file import MAX_LISTING_BYTES
from edgeformer.files.limits import MAX_SIZE
from edgeformer.files.quoting import plain
from edgeformer.files.typed import mismatch

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Inner

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that transformers has attributes for, in the order in which it adds missing ones."""


def has_tokenizer(around: Companions) -> bool:
    """Whether there is anything that a tokenizer can be read from."""
    return around.tokenizer_folder is not None or (
        around.embedded is not None and "ggml.tokens" in around.embedded.metadata
    )


def load_tokenizer(around: Companions) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        InputError: there is none, or it can't be read here; the message has the install line for what is missing.
        ConfigError: its files contradict each other.
    """
    folder = around.tokenizer_folder
    if folder is None and has_tokenizer(around):
        from edgeformer.checkpoint.companions.gguf_vocabulary import from_gguf

        assert around.embedded is not None
        return from_gguf(around.embedded)
    if folder is None:
        where = str(around.folders[0]) if around.folders else "this model"
        raise InputError(
            f"{where} has no tokenizer (tokenizer.json or the like), so text can't be tokenized; give token ids"
        )
    return read_tokenizer(folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that has one; raises what `load_tokenizer` raises.

    Cached as long as the files don't change, since several steps of an export need it. Callers must not modify it.
    """
    states = ((f, f.stat()) for f in files_of_tokenizer(folder))
    return _read(folder, tuple((f, s.st_mtime_ns, s.st_size) for f, s in states))


@functools.lru_cache(maxsize=4)
def _read(folder: Path, state: tuple[Any, ...]) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.exists():
        return _converted(folder)
    data = read_object(file, MAX_LISTING_BYTES)
    if (odd := odd_id(data)) is not None:
        raise InputError(f"{file} can't be read: {odd}; ids must be integers from 0 to {MAX_SIZE:,}")
    if is_plain(data):
        return read_fast(folder)
    process = Guarded(1000 + file.stat().st_size * 40 // 10**6, ("open", {"folder": str(folder.absolute())}))
    try:
        named = process.started()
    except GuardedFailed as e:
        raise InputError(f"{file} can't be read: {plain(str(e), limit=500)}") from None
    return GuardedTokenizer(process, named, str(file))


def read_fast(folder: Path) -> FastTokenizer:
    """The tokenizer of a tokenizer.json, in this process.

    Raises:
        InputError: the package `tokenizers` can't read it.
        ConfigError: its files contradict each other.
    """
    from tokenizers import Tokenizer as Inner

    file = folder / "tokenizer.json"
    data = read_object(file, MAX_LISTING_BYTES)
    # the truncation and padding last used are not part of a tokenizer, and may be any number
    bare = {k: v for k, v in data.items() if k not in ("truncation", "padding")}
    text = json.dumps(bare) if data.get("truncation") or data.get("padding") else file.read_text(encoding="utf-8-sig")
    try:
        inner = asked(lambda: Inner.from_str(text))
    except InputError as e:
        raise InputError(f"{file} can't be read: {e}") from e
    inner.no_truncation()
    inner.no_padding()
    settings = tokenizer_settings(folder)
    _apply_class(inner, settings)
    _add(inner, settings, file)
    return FastTokenizer(inner, named_tokens(settings) or _usual_tokens(inner))


_WORDPIECE = (
    "Bert",
    "DistilBert",
    "Electra",
    "MobileBert",
    "LayoutLM",
    "Funnel",
    "Lxmert",
    "ConvBert",
    "SqueezeBert",
    "MPNet",
)
_BYTE_LEVEL = ("GPT2", "Roberta", "Bart", "Longformer", "LED", "Blenderbot", "Deberta", "CodeGen", "Bloom")


def _apply_class(inner: Inner, settings: dict[str, Any]) -> None:
    """Apply what transformers' classes take from tokenizer_config.json over tokenizer.json: BERT's lowercasing, accents and
    Chinese characters, and GPT-2's prefix space."""
    name = str(settings.get("tokenizer_class") or "")
    normalizer, splitter = inner.normalizer, inner.pre_tokenizer
    if name.startswith(_WORDPIECE) and type(normalizer).__name__ == "BertNormalizer":
        for key, field in (("do_lower_case", "lowercase"), ("tokenize_chinese_chars", "handle_chinese_chars")):
            if isinstance(settings.get(key), bool):
                setattr(normalizer, field, settings[key])
        if "strip_accents" in settings and settings["strip_accents"] in (None, True, False):
            normalizer.strip_accents = settings["strip_accents"]
        inner.normalizer = normalizer
    space = settings.get("add_prefix_space")
    if name.startswith(_BYTE_LEVEL) and type(splitter).__name__ == "ByteLevel" and isinstance(space, bool):
        splitter.add_prefix_space = space
        inner.pre_tokenizer = splitter


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json merged with older files: special_tokens_map.json, and added_tokens.json as an
    `added_tokens_decoder`. As in transformers, both are read only where the config has no `added_tokens_decoder` itself."""
    config = folder / "tokenizer_config.json"
    settings: dict[str, Any] = dict(read_object(config)) if config.exists() else {}
    if isinstance(settings.get("added_tokens_decoder"), dict):
        return settings
    if (file := folder / "special_tokens_map.json").exists():
        settings |= read_object(file)
    if (file := folder / "added_tokens.json").exists():
        special = {
            *named_tokens(settings).values(),
            *(t for t in map(_content, _extra(settings)) if isinstance(t, str)),
        }
        settings["added_tokens_decoder"] = {
            index: {"content": token, "normalized": token not in special, "special": token in special}
            for token, index in _added(file).items()
        }
    return settings


def _added(file: Path) -> dict[str, int]:
    """The tokens of an added_tokens.json, with their ids."""
    if (wrong := mismatch(data := read_object(file), dict[str, int])) is not None:
        raise ConfigError(f"{file}: {wrong}")
    return data


def named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like: all keys of a tokenizer's settings that end in `_token` and hold a token."""
    extra = settings.get("extra_special_tokens")
    entries = {k: v for k, v in settings.items() if k.endswith("_token")} | (extra if isinstance(extra, dict) else {})
    return {key: token for key, value in entries.items() if isinstance(token := _content(value), str)}


_USUAL = (  # the named tokens of classes whose configs don't name them: BERT's, RoBERTa's and BART's, GPT-2's
    {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>",
     "mask_token": "<mask>"},
    {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
)  # fmt: skip


def _usual_tokens(inner: Inner) -> dict[str, str]:
    """The named tokens of a tokenizer whose settings name none: those of the first class whose tokens it has."""
    return next((names for names in _USUAL if all(inner.token_to_id(t) is not None for t in names.values())), {})


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token


def _extra(settings: dict[str, Any]) -> list[Any]:
    """The special tokens without a name, as strings or objects."""
    found: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(key) or []
        if isinstance(value, (dict, list)):
            found += value.values() if isinstance(value, dict) else value
    return found


def _add(inner: Inner, settings: dict[str, Any], file: Path) -> None:
    """Add the tokens that the settings have and tokenizer.json lacks.

    Raises:
        ConfigError: a token would get another id than in the settings, and so another row of the embedding.
    """
    from tokenizers import AddedToken

    declared: dict[str, int] = {}
    known = {repr(token) for token in inner.get_added_tokens_decoder().values()}
    wanted = []
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        entries = sorted((int(i), entry) for i, entry in (settings.get("added_tokens_decoder") or {}).items())
        for index, entry in entries:
            token = AddedToken(entry["content"], **{k: bool(entry[k]) for k in flags if k in entry})
            declared[entry["content"]] = index
            if repr(token) not in known:
                wanted.append(token)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise ConfigError(f"{file.parent}: the added tokens of its tokenizer can't be read: {e}") from e
    present = {t.content for t in inner.get_added_tokens_decoder().values()} | declared.keys()
    for entry in (*(settings.get(name) for name in NAMED), *_extra(settings)):
        if not isinstance(text := _content(entry), str) or text in present:
            continue
        present.add(text)
        own = {k: bool(entry[k]) for k in flags if k in entry} if isinstance(entry, dict) else {}
        wanted.append(AddedToken(text, **{"normalized": False, **own, "special": True}))
    if wanted:
        inner.add_tokens(wanted)
    wrong = {token: index for token, index in declared.items() if inner.token_to_id(token) != index}
    if wrong:
        token, index = next(iter(wrong.items()))
        raise ConfigError(
            f"{file.parent}: the tokenizer's settings give the token {token!r} the id {index}, {file.name} gives it"
            f" {inner.token_to_id(token)} ({len(wrong)} tokens differ); the files belong to different tokenizers"
        )


def _converted(folder: Path) -> Tokenizer:
    """A tokenizer without tokenizer.json, converted by transformers from the slow tokenizer's files."""
    files = ", ".join(
        f.name for f in sorted(folder.iterdir()) if f.suffix in (".model", ".spm", ".tiktoken", ".txt", ".json")
    )
    try:
        from transformers import AutoTokenizer
    except ImportError as e:
        raise InputError(
            f"{folder} has no tokenizer.json; its tokenizer ({files}) can be converted by transformers and sentencepiece;"
            ' pip install "edgeformer[tokenizers]"'
        ) from e
    try:
        made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # a converter may raise anything
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(
            f"{folder} has no tokenizer.json, and transformers can't convert its tokenizer ({files}): {first}. Save it as"
            ' tokenizer.json where it was made, or install what it needs: pip install "edgeformer[tokenizers]"'
        ) from e
    named = {k: str(v) for k, v in made.special_tokens_map.items() if isinstance(v, str)}
    inner = getattr(made, "backend_tokenizer", None)
    if inner is None:
        return SlowTokenizer(made, named)
    inner.no_truncation()
    inner.no_padding()
    return FastTokenizer(inner, named)


def normalized_json(around: Companions) -> str | None:
    """The content of an artefact's tokenizer.json: all tokens, no truncation, no padding; None where the tokenizer's files are
    copied unchanged, because its tokenizer.json is complete already, or because none can express it."""
    folder = around.tokenizer_folder
    if folder is not None and not (folder / "tokenizer.json").is_file():
        try:
            return read_tokenizer(folder).to_json()
        except InputError:
            return None  # its files are copied; their reader needs the converter
    made = load_tokenizer(around).to_json()
    if folder is None or made is None:
        return made
    stored = read_object(folder / "tokenizer.json", MAX_LISTING_BYTES)
    ours = json.loads(made)
    complete = len(stored.get("added_tokens") or ()) == len(ours["added_tokens"])
    changed = any(ours.get(part) != stored.get(part) for part in ("normalizer", "pre_tokenizer"))
    return None if complete and not changed and not stored.get("truncation") and not stored.get("padding") else made
