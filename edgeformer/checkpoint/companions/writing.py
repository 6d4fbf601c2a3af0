"""Write a model's companions into an artefact: all files of the tokenizer, the chat template, the generation defaults; and
check that the artefact's tokenizer produces the source's ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.companions.chat import DEFAULT, chat_templates
from edgeformer.checkpoint.companions.files import GENERATION, Companions, read_object
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.companions.texts import first_difference, texts_of
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer, load_tokenizer, normalized_json, read_tokenizer
from edgeformer.errors import ConfigError, ExportError, InputError
from edgeformer.files.paths import check_regular


def write_companions(around: Companions, folder: Path, *, named_templates: bool = False) -> list[str]:
    """Write a model's companions into a folder, and check the tokenizer there.

    tokenizer.json then holds all tokens, and neither truncation nor padding: tools that read nothing else get the right ids.
    The chat template is written to chat_template.jinja and tokenizer_config.json, since every tool reads one of them.

    Args:
        around: the model's.
        folder: the artefact's.
        named_templates: also list templates of other names in tokenizer_config.json (transformers.js reads them only there;
            other tools accept no list).

    Returns:
        Notes for the user.

    Raises:
        ExportError: the artefact's tokenizer encodes a text differently from the source's.
        InputError, ConfigError: the source's companions can't be read.
    """
    notes: list[str] = []
    if (file := around.find(GENERATION)) is not None:
        _copy(file, folder / GENERATION)
    elif around.embedded is not None and (ids := special_ids(around).as_config()):  # from the GGUF file's metadata
        (folder / GENERATION).write_text(json.dumps(ids, indent=2) + "\n")
    if not has_tokenizer(around):
        return notes
    source = around.tokenizer_folder
    for file in around.tokenizer_files():
        assert source is not None
        place = folder / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        _copy(file, place)
    if (text := normalized_json(around)) is not None:
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    _write_settings(around, folder, named_templates)
    _check(around, folder, notes)
    return notes


def _copy(file: Path, place: Path) -> None:
    check_regular(file, ConfigError)
    shutil.copyfile(file, place)


def _write_settings(around: Companions, folder: Path, named_templates: bool) -> None:
    """Write the chat template, and the special tokens of a GGUF file's tokenizer, to tokenizer_config.json."""
    settings: dict[str, Any] = {}
    file = folder / "tokenizer_config.json"
    if file.exists():
        settings = read_object(file)
    elif around.tokenizer_folder is None:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **load_tokenizer(around).named}
    templates = chat_templates(around)
    if templates:
        settings["chat_template"] = (
            templates[DEFAULT]
            if list(templates) == [DEFAULT] or (DEFAULT in templates and not named_templates)
            else [{"name": name, "template": text} for name, text in templates.items()]
        )
        if DEFAULT in templates:
            (folder / "chat_template.jinja").write_text(templates[DEFAULT], encoding="utf-8")
        more = folder / "additional_chat_templates"
        for name, text in templates.items():
            if name != DEFAULT and Path(name).name == name:
                more.mkdir(exist_ok=True)
                (more / f"{name}.jinja").write_text(text, encoding="utf-8")
    if settings:
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(around: Companions, folder: Path, notes: list[str]) -> None:
    """Compare the ids of a fixed set of texts."""
    try:
        source = load_tokenizer(around)
    except InputError as e:
        notes.append(f"the tokenizer was copied, but not checked: {e}")
        return
    try:
        made = read_tokenizer(folder)
    except (InputError, ConfigError) as e:
        raise ExportError(f"the artefact's tokenizer can't be read, but the source's can: {e}") from e
    for special in (True, False):
        if (found := first_difference(source, made, texts_of(source), special=special)) is not None:
            text, wanted, given = found
            raise ExportError(
                f"the artefact's tokenizer gives the text {text!r} the ids {given}, the source's {wanted}; nothing was written"
            )
    templates, there = chat_templates(around), chat_templates(Companions((folder,)))
    if wrong := [name for name, text in templates.items() if there.get(name) != text]:
        raise ExportError(f"the artefact's chat template {wrong[0]!r} differs from the source's; nothing was written")
