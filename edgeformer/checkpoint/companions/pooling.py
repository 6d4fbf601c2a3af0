"""sentence-transformers' modules, which turn a text into a vector: read from and written into a folder.

`modules.json` lists the modules; each has a folder with a config. Versions up to 5.3 have a flag for each mode
(`pooling_mode_mean_tokens`), later ones one `pooling_mode`, a mode's name or a list of them. edgeformer writes the flags where
they can express the order of the modes: every version reads them, and so does text-embeddings-inference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.companions.decoder_embedder import body_of
from edgeformer.checkpoint.companions.files import EMBEDDER_FILES, Companions, read_object
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer, load_tokenizer
from edgeformer.errors import ConfigError
from edgeformer.files.quoting import shown
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.pooling import MODES, Pooling
from edgeformer.models._config import read_json
from edgeformer.spec import Model

FLAGS = {  # in the order in which sentence-transformers concatenates
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN = frozenset((*FLAGS, "pooling_mode", "word_embedding_dimension", "embedding_dimension", "include_prompt"))


@dataclass(frozen=True)
class Embedder:
    """The content of modules.json: the pooling modes ("mean", "cls", "lasttoken", ...), whether the vector is normalised, and
    any other modules."""

    modes: tuple[str, ...]
    normalize: bool
    others: tuple[str, ...] = ()
    include_prompt: bool = True


def read_embedder(folder: Path) -> Embedder | None:
    """The modules of a sentence-transformers folder; None for any other folder.

    Raises:
        ConfigError: modules.json, or the pooling config, is invalid or has unsupported keys.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return None
    modules = read_json(file)
    try:
        kinds = {str(m["type"]).rsplit(".", 1)[-1]: str(m["path"]) for m in modules}
    except (TypeError, KeyError) as e:
        raise ConfigError(f"{file} is not a list of sentence-transformers modules") from e
    others = tuple(sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}))
    if "Pooling" not in kinds:
        return Embedder((), "Normalize" in kinds, others)
    settings = read_object(folder / kinds["Pooling"] / "config.json")
    where = folder / kinds["Pooling"] / "config.json"
    if unknown := sorted(settings.keys() - _KNOWN):
        raise ConfigError(f"{where} has keys that edgeformer doesn't support: {', '.join(unknown)}")
    return Embedder(_modes(settings, where), "Normalize" in kinds, others, settings.get("include_prompt") is not False)


def _modes(settings: dict[str, Any], where: Path) -> tuple[str, ...]:
    """The pooling modes that a config enables."""
    if (said := settings.get("pooling_mode")) is not None:
        if said == []:
            raise ConfigError(f"{where}: pooling_mode is an empty list; name at least one of {', '.join(MODES)}")
        return tuple(map(str, said if isinstance(said, list) else [said]))
    flags = {flag: settings[flag] for flag in FLAGS if flag in settings}
    if wrong := {flag: value for flag, value in flags.items() if not isinstance(value, bool)}:
        raise ConfigError(f"{where}: {', '.join(wrong)} must be true or false, got {shown([*wrong.values()])}")
    found = tuple(mode for flag, mode in FLAGS.items() if flags.get(flag))
    return found or ("mean",)  # sentence-transformers' default


def supported_mode(embedder: Embedder, folder: Path) -> str | tuple[str, ...]:
    """The pooling modes of a supported embedder.

    Raises:
        ConfigError: its modules or modes are not supported.
    """
    if embedder.others:
        raise ConfigError(f"{folder / 'modules.json'}: modules not supported: {', '.join(embedder.others)}")
    modes = embedder.modes
    if not modes or not {*modes} <= {*MODES} or len({*modes}) < len(modes):
        raise ConfigError(
            f"{folder}: pooling by {' and '.join(modes) or 'nothing'} is not supported; modes are {', '.join(MODES)}, each once"
        )
    return modes[0] if len(modes) == 1 else modes


def write_embedder(around: Companions, folder: Path, pooling: Pooling, width: int, longest: int) -> None:
    """Write the modules of an embedder as sentence-transformers 2 to 6 and fastembed read them.

    Args:
        around: the model's companions; its own sentence-transformers settings are copied.
        folder: where the model is written.
        pooling: how tokens become a vector.
        width: of the hidden states.
        longest: tokens of the longest text, where the companions don't set it.
    """
    kinds = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *([("2_Normalize", "Normalize")] if pooling.normalize else []),
    ]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (folder / "1_Pooling").mkdir()
    flags: dict[str, Any] = {flag: name in pooling.modes for flag, name in FLAGS.items()}
    if pooling.modes != tuple(name for name in FLAGS.values() if name in pooling.modes):
        flags = {"pooling_mode": list(pooling.modes)}  # an order that flags can't express: version 5.4 or newer
    settings = {"word_embedding_dimension": width, **flags, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if pooling.normalize:
        (folder / "2_Normalize").mkdir()
        (folder / "2_Normalize" / "config.json").write_text("{}\n")
    if not (folder / "special_tokens_map.json").exists() and has_tokenizer(
        around
    ):  # fastembed needs it to read the tokenizer
        named = load_tokenizer(around).named
        (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n")
    for name in EMBEDDER_FILES:
        if (file := around.find(name)) is not None:
            (folder / name).write_bytes(file.read_bytes())
    if not (folder / "sentence_bert_config.json").exists():
        settings = {"max_seq_length": longest, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def with_pooling(spec: Model, folder: Path) -> tuple[Model, list[str]]:
    """The spec with the pooling that a sentence-transformers folder declares in modules.json, and notes.

    Raises:
        ConfigError: modules.json is invalid, or asks for what edgeformer doesn't build.
    """
    embedder = read_embedder(folder)
    if embedder is None:
        return spec, []
    if not embedder.modes and not embedder.others:
        return spec, []
    if isinstance(spec, Decoder):
        spec = body_of(spec, str(folder / "modules.json"))
    if not isinstance(spec, Encoder):
        return spec, [f"{folder / 'modules.json'} is ignored: edgeformer pools encoders and decoders only"]
    if spec.pooling is not None:
        return spec, []
    if spec.classifier is not None:
        raise ConfigError(
            f"{folder / 'modules.json'} makes this model an embedder, but config.json's architectures names a class with a head;"
            " --without-head takes the embedder"
        )
    pooling = Pooling(mode=supported_mode(embedder, folder), normalize=embedder.normalize)
    notes = []
    if not embedder.include_prompt:
        notes.append(
            "the model's pooling excludes prompt tokens (include_prompt is false); edgeformer pools them with the others"
        )
    settings = folder / "config_sentence_transformers.json"
    if settings.is_file() and (prompt := read_object(settings).get("default_prompt_name")) is not None:
        notes.append(
            f"sentence-transformers prepends the prompt {prompt!r} to every text; edgeformer takes texts as they are"
        )
    return replace(spec, pooling=pooling), notes
