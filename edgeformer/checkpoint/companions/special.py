"""The BOS, EOS, padding and decoder start ids: read from every source, range-checked, and never invented.

An id has three states: a number; `NONE`, when a source declares that there is no such token (null, or a negative number in old
configs); and `UNKNOWN`, when no source mentions it. Neither of the last two is a number, and 0 is an id like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edgeformer.checkpoint.companions.files import GENERATION, Companions
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer, load_tokenizer
from edgeformer.errors import ConfigError, InputError


class Absent(Enum):
    """Why there is no id."""

    NONE = "there is no such token"
    UNKNOWN = "no file says"


NONE, UNKNOWN = Absent.NONE, Absent.UNKNOWN
Special = int | Absent


@dataclass(frozen=True)
class SpecialIds:
    """`eos`: every id that ends a text, empty where none is known. `notes` report sources that disagree or are invalid."""

    bos: Special = UNKNOWN
    eos: tuple[int, ...] = ()
    pad: Special = UNKNOWN
    decoder_start: Special = UNKNOWN
    notes: list[str] = field(default_factory=list, compare=False)

    def as_config(self) -> dict[str, Any]:
        """The known ids, as keys of a config.json."""
        found: dict[str, Any] = {
            f"{name}_token_id": value for name in ("bos", "pad") if isinstance(value := getattr(self, name), int)
        }
        if self.eos:
            found["eos_token_id"] = self.eos[0] if len(self.eos) == 1 else list(self.eos)
        if isinstance(self.decoder_start, int):
            found["decoder_start_token_id"] = self.decoder_start
        return found


_GGUF = {"bos": "ggml.bos_token_id", "eos": "ggml.eos_token_id", "pad": "ggml.padding_token_id"}
_GGUF_ENDS = ("ggml.eot_token_id", "ggml.eom_token_id")


def special_ids(around: Companions) -> SpecialIds:
    """The special ids of a model.

    generation_config.json comes first, as in transformers' `generate`; then config.json, a GGUF file's metadata, and
    the tokenizer's own tokens. Ids outside the vocabulary are ignored, with a note.

    Raises:
        ConfigError: a value is not an id.
    """
    notes: list[str] = []
    sources = list(_sources(around))
    found: dict[str, Special | tuple[int, ...]] = {}
    for name in ("bos", "eos", "pad", "decoder_start"):
        said = {where: data[name] for where, data in sources if name in data}
        values = {where: _ids(value, f"{name}_token_id", where, around.vocab, notes) for where, value in said.items()}
        known = {where: ids for where, ids in values.items() if ids}
        chosen = next(iter(known.values()), ())
        first = next(iter(known), "")
        for where, ids in known.items():
            if not set(ids) <= set(chosen) and not (
                name == "eos" and where == "config.json" and set(chosen) & set(ids)
            ):
                notes.append(f"{name}_token_id: {first} says {_text(chosen)}, {where} {_text(ids)}; {first} is used")
        found[name] = chosen if name == "eos" else chosen[0] if chosen else NONE if said else UNKNOWN
    return SpecialIds(**found, notes=list(dict.fromkeys(notes)))  # type: ignore[arg-type]


def decoder_start(around: Companions) -> int:
    """The id of the first decoder token of an encoder–decoder model.

    T5 starts with its padding token, which is 0 where no file sets it (the default of its config); other models with
    `bos`, as in transformers' `generate`.

    Raises:
        ConfigError: no file sets it.
    """
    ids = special_ids(around)
    if isinstance(ids.decoder_start, int):
        return ids.decoder_start
    is_t5 = (around.config or {}).get("model_type") in ("t5", "mt5")
    start = ids.pad if is_t5 else ids.bos
    if isinstance(start, int):
        return start
    if is_t5 and start is UNKNOWN:
        return 0
    where = around.folders[0] if around.folders else "this model"
    raise ConfigError(f"{where} has no decoder_start_token_id, so the first decoder token is unknown")


def _sources(around: Companions) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, {bos, eos, pad, decoder_start: value}) of every source, in order of precedence."""
    keys = {
        "bos": "bos_token_id",
        "eos": "eos_token_id",
        "pad": "pad_token_id",
        "decoder_start": "decoder_start_token_id",
    }
    generation = around.read(GENERATION)
    yield GENERATION, {name: generation[key] for name, key in keys.items() if key in generation}
    config = around.config if around.config is not None else around.read("config.json")
    yield "config.json", {name: config[key] for name, key in keys.items() if key in config}
    if around.embedded is not None:
        data = around.embedded.metadata
        said: dict[str, Any] = {name: data[key] for name, key in _GGUF.items() if key in data}
        ends = [data[key] for key in _GGUF_ENDS if key in data]
        if ends:
            said["eos"] = [*([said["eos"]] if "eos" in said else []), *ends]
        yield around.embedded.file.name, said
    if has_tokenizer(around):
        try:
            tokenizer = load_tokenizer(around)
        except (InputError, ConfigError):
            tokenizer = None  # the code that needs it reports why it can't be read
        if tokenizer is not None:
            named = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token"}
            tokens = {name: tokenizer.named.get(key) for name, key in named.items()}
            ids = {name: tokenizer.id_of(token) for name, token in tokens.items() if token is not None}
            yield "the tokenizer", {name: i for name, i in ids.items() if i is not None}


def _ids(value: object, key: str, where: str, vocab: int | None, notes: list[str]) -> tuple[int, ...]:
    """The ids that a source gives, without the invalid ones."""
    said = value if isinstance(value, list) else [] if value is None else [value]
    values = [v for v in said if isinstance(v, int) and not isinstance(v, bool)]
    if len(values) < len(said):
        raise ConfigError(f"{where}: {key} must be a token id or a list of them, got {value!r}")
    real = tuple(dict.fromkeys(v for v in values if v >= 0 and (vocab is None or v < vocab)))
    if beyond := [v for v in values if vocab is not None and v >= vocab]:
        notes.append(f"{where}: {key} {_text(beyond)} is outside the vocabulary of {vocab}, and is ignored")
    return real


def _text(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))
