"""Chat templates: looked up where transformers looks, rendered in Jinja's sandbox.

A template is a program from a model's folder: it runs in `ImmutableSandboxedEnvironment`, which denies attributes that begin
with an underscore, changes to arguments, and file access; and in a process of its own, since it may never end.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.companions.files import Companions
from edgeformer.checkpoint.companions.guarded import Guarded, GuardedFailed, GuardedLimit
from edgeformer.errors import ConfigError, InputError
from edgeformer.files.quoting import plain, shown

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser

DEFAULT = "default"


class TemplateLimit(InputError):
    """A chat template exceeds its limit of time or memory, so no tool should render it."""


SECONDS, MEGABYTES = 5.0, 384
"""Limits of rendering; the templates of today's models take milliseconds and a few megabytes."""
_guarded = Guarded(MEGABYTES)


def chat_templates(around: Companions) -> dict[str, str]:
    """The templates of a model by name (`default`, `tool_use`, ...); empty if it has none.

    chat_template.jinja and additional_chat_templates/ come before tokenizer_config.json's, as in transformers; then
    chat_template.json, and a GGUF file's metadata. Of an adapter and its base, the first that has one is used.

    Raises:
        ConfigError: a template is not a string.
    """
    for folder in around.folders:
        if found := _of_folder(Companions((folder,))):
            return found
    if around.embedded is not None:
        prefix = "chat_template"
        data = around.embedded.metadata
        found = {DEFAULT: data[prefix]} if isinstance(data.get(prefix), str) else {}
        return found | {k.removeprefix(f"{prefix}."): v for k, v in data.items() if k.startswith(f"{prefix}.")}
    return {}


def _of_folder(around: Companions) -> dict[str, str]:
    found: dict[str, str] = {}
    folder = around.folders[0]
    if (file := around.find("chat_template.jinja")) is not None:
        found[DEFAULT] = _text(file)
    for file in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[file.stem] = _text(file)
    if found:
        return found
    for name in ("tokenizer_config.json", "chat_template.json"):
        said = around.read(name).get("chat_template")
        if isinstance(said, str):
            return {DEFAULT: said}
        if isinstance(said, dict):
            said = [{"name": k, "template": v} for k, v in said.items()]
        if isinstance(said, list):
            try:
                found = {entry["name"]: entry["template"] for entry in said}
            except (TypeError, KeyError) as e:
                raise ConfigError(f"{folder / name}: chat_template is not a list of named templates") from e
        elif said is not None:
            raise ConfigError(
                f"{folder / name}: chat_template must be a string or a list of named templates, got {shown(said)}"
            )
        if not all(isinstance(text, str) for text in found.values()):
            raise ConfigError(f"{folder / name}: chat_template holds a template that is not a string")
        if found:
            return found
    return {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file} can't be read as UTF-8 text: {e}") from e


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    named: Mapping[str, str],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation to text.

    Args:
        template: Jinja, as transformers' `apply_chat_template` runs it.
        messages: {"role", "content"} each.
        named: special tokens by name, which templates use (`bos_token`).
        add_generation_prompt: end with the tokens that begin a reply.

    Raises:
        InputError: the template refuses the conversation, or is broken.
        TemplateLimit: it takes longer than 5 s, or more than 384 MB.
    """
    arguments = {"template": template, "messages": list(messages), "named": dict(named)}
    try:
        return _guarded.ask("render", SECONDS, **arguments, add_generation_prompt=add_generation_prompt)
    except GuardedFailed as e:
        kind = TemplateLimit if isinstance(e, GuardedLimit) else InputError
        raise kind(f"the chat template can't render this conversation: {plain(str(e), limit=500)}") from None


def render_here(
    template: str, messages: Sequence[Mapping[str, Any]], named: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """`render` in this process, without its limits.

    Raises:
        Exception: of any type, as the template raises it.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text, for training; it renders as its body."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    given = {"tools": None, "documents": None, **named}  # transformers passes both, None by default
    return environment.from_string(template).render(
        messages=list(messages), add_generation_prompt=add_generation_prompt, **given
    )
