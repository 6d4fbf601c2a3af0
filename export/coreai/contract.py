"""The bundle that Apple's runner of language models reads, and a check of one.

The contract is what coreai-models (`LanguageBundle`, `LanguageConfig`, `CoreAIPipelinedEngine`) asks for: a folder with
`metadata.json` of version 0.2, an asset whose function `main` takes `input_ids` and `position_ids` and keeps two to four
states, of which the first two are growing caches of rank 5, and returns float16 logits; and a tokenizer folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ArtefactError
from edgeformer.exporters.coreai.store import MAIN, states
from edgeformer.files.json_file import read_json_file
from edgeformer.files.paths import inside
from edgeformer.spec import Model
from edgeformer.spec.task import Task

METADATA, TOKENIZER, VERSION = "metadata.json", "tokenizer", "0.2"
_FIELDS: dict[str, tuple[type, ...]] = {
    "metadata_version": (str,), "kind": (str,), "name": (str,), "assets": (dict,), "language": (dict,),
}  # fmt: skip
_LANGUAGE: dict[str, tuple[type, ...]] = {"tokenizer": (str,), "vocab_size": (int,), "max_context_length": (int,)}


def metadata(spec: Model, name: str, precision: str, *, tokenizer: bool) -> dict[str, Any]:
    """The content of `metadata.json` of a decoder. tokenizer: whether the bundle has a tokenizer.json."""
    return {
        "metadata_version": VERSION,
        "kind": "llm",
        "name": name,
        "assets": {MAIN: f"{name}.aimodel"},
        "language": {
            "tokenizer": name,
            "vocab_size": spec.vocab,
            "max_context_length": spec.context,
            "embedded_tokenizer": tokenizer,
            "function_map": {MAIN: [MAIN]},
        },
        "compression": precision,
        "user_data": {"made_by": "edgeformer"},
    }


def check_bundle(folder: Path) -> dict[str, Any]:
    """The metadata of a language model's bundle, after a check against the contract.

    Raises:
        ArtefactError: a field is missing or wrong, or a file isn't there; the message names it.
    """
    file = folder / METADATA
    if not file.is_file():
        raise ArtefactError(f"{file} is missing: a Core AI bundle needs it")
    data = read_json_file(file, ArtefactError)
    if not isinstance(data, dict):
        raise ArtefactError(f"{file} holds no JSON object")
    _check_fields(file, "", data, _FIELDS)
    if data["metadata_version"] != VERSION:
        raise ArtefactError(
            f"{file}: metadata_version is {data['metadata_version']!r}; the runner reads {VERSION!r} only"
        )
    if data["kind"] != "llm":
        raise ArtefactError(f"{file}: kind is {data['kind']!r}; a language model's is 'llm'")
    language = data["language"]
    _check_fields(file, "language.", language, _LANGUAGE)
    for name in ("vocab_size", "max_context_length"):
        if isinstance(language[name], bool) or language[name] <= 0:
            raise ArtefactError(f"{file}: language.{name} is {language[name]!r}; it must be a positive integer")
    _check_function_map(file, language.get("function_map"))
    asset = data["assets"].get(MAIN)
    if not isinstance(asset, str):
        raise ArtefactError(f"{file}: assets.{MAIN} is {asset!r}; it must name the asset")
    place = inside(folder, asset, str(file), ArtefactError)
    if place.suffix != ".aimodel" or not (place / "main.mlirb").is_file():
        raise ArtefactError(f"{file}: assets.{MAIN} names {asset!r}, which is no .aimodel folder with a main.mlirb")
    embedded = language.get("embedded_tokenizer", True)
    if not isinstance(embedded, bool):
        raise ArtefactError(f"{file}: language.embedded_tokenizer is {embedded!r}; it must be true or false")
    if embedded and not (folder / TOKENIZER / "tokenizer.json").is_file():
        raise ArtefactError(f"{file}: language.embedded_tokenizer is true, and {TOKENIZER}/tokenizer.json is missing")
    return data


def _check_fields(file: Path, prefix: str, data: dict[str, Any], fields: dict[str, tuple[type, ...]]) -> None:
    for name, kinds in fields.items():
        if name not in data:
            raise ArtefactError(f"{file}: {prefix}{name} is missing")
        if not isinstance(data[name], kinds):
            raise ArtefactError(
                f"{file}: {prefix}{name} is {json.dumps(data[name])[:60]}; it must be a {kinds[0].__name__}"
            )


def _check_function_map(file: Path, given: Any) -> None:
    if given is None:
        return
    if not isinstance(given, dict) or given.get(MAIN) != [MAIN]:
        raise ArtefactError(
            f"{file}: language.function_map is {json.dumps(given)[:60]}; it must map {MAIN!r} to [{MAIN!r}]"
        )


def core_ai_notes(spec: Model) -> list[str]:
    """What is special about this spec in Core AI: whether Apple's runner of language models takes it."""
    if spec.task == Task.TEXT2TEXT_GENERATION:
        return ["two functions, encode and decode, for one sequence without padding"]
    if spec.task != Task.TEXT_GENERATION:
        return ["a batch of texts with padding; shapes are dynamic, which the Neural Engine doesn't take"]
    notes = ["one sequence without padding; shapes are dynamic, which the Neural Engine doesn't take"]
    reasons = runner_refuses(spec)
    return notes + (reasons or ["Apple's runner of language models takes it with fp16 arithmetic (fp16, q4f16, q8f16)"])


def runner_refuses(spec: Model) -> list[str]:
    """Why Apple's runner doesn't take a decoder, whatever its precision."""
    reasons, caches = [], [s.public for s in states(spec)]
    if caches[:2] != ["keyCache", "valueCache"] or len(caches) > 4:
        reasons.append(
            "Apple's runner of language models takes 2 to 4 states, keyCache and valueCache first, and this model has"
            f" {', '.join(caches)}: call the function `main` yourself (docs/coreai.md)"
        )
    if spec.prefixed:
        reasons.append(
            "this is a prefix LM: `main` has a third input, prefix_length, which Apple's runner doesn't feed"
        )
    return reasons


def remarks(loaded: LoadedModel, *, half: bool) -> list[str]:
    """What Apple's runner of language models would refuse or do otherwise, although the asset is right."""
    notes = runner_refuses(loaded.spec)
    if not half:
        notes.append(
            "Apple's runner of language models takes float16 logits only, and these are float32; use --precision fp16, q4f16 or"
            " q8f16 for it"
        )
    ends = special_ids(loaded.around).eos if has_tokenizer(loaded.around) else ()
    if len(ends) > 1:
        notes.append(
            f"this model ends a text with any of the ids {', '.join(map(str, ends))}; Apple's runner takes end ids from the"
            " tokenizer's eos_token and its special tokens only"
        )
    return notes
