"""Checks of an artefact's text side: token ids, rendered chats, stop tokens, and a short chat's prompt. Uses the runtime's own
tokenizer and template engine if it has them, else edgeformer's readers of the artefact's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeformer.checkpoint.companions.chat import DEFAULT, TemplateLimit, chat_templates, render
from edgeformer.checkpoint.companions.files import companions_of
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.companions.texts import texts_of
from edgeformer.checkpoint.companions.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ConfigError, InputError
from edgeformer.files.quoting import shown
from edgeformer.inference.runtime import Session
from edgeformer.inference.text import ToolText
from edgeformer.verification.verdict import FAIL, PASS, UNCHECKED, Check

CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe, 你好 👍\n\n  two lines"}],
    [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now?"},
    ],
)
"""Conversations whose rendered text is compared. A template may reject one (e.g. its system message); both sides must then."""


def check_surroundings(folder: Path, against: LoadedModel, session: Session) -> list[Check]:
    """Check an artefact's tokenizer, chat template and stop tokens against the original's; [] if that has no tokenizer."""
    if not has_tokenizer(against.around):
        return []
    try:
        source = load_tokenizer(against.around)
    except (InputError, ConfigError) as e:
        return [Check("tokenizer", UNCHECKED, note=str(e)[:200])]
    tool = session.text_of_tool()
    try:
        tool = _completed(tool, folder, against)
    except (InputError, ConfigError) as e:
        return [Check("tokenizer", FAIL, note=f"the artefact's tokenizer can't be read: {e}")]
    return [_ids(source, tool, session), *_chats(folder, against, source, tool), _stops(against, tool)]


def chat_prompt(against: LoadedModel) -> np.ndarray | None:
    """Ids [1, T] of a short chat in the original's template; None without a template or tokenizer, or if they don't fit."""
    template = chat_templates(against.around).get(DEFAULT)
    if template is None or not has_tokenizer(against.around):
        return None
    try:
        source = load_tokenizer(against.around)
        ids = source.encode(render(template, CHATS[0], source.named), special=False)
    except (InputError, ConfigError):
        return None
    fits = bool(ids) and max(ids) < against.spec.vocab and len(ids) < against.spec.context
    return np.array([ids], np.int64) if fits else None


def _completed(tool: ToolText, folder: Path, against: LoadedModel) -> ToolText:
    """Complete a tool's text functions from the files of the artefact's folder."""
    if tool.encode is not None and tool.render is not None and tool.stops is not None:
        return tool
    around = companions_of(folder, against.spec.vocab)
    own = None if tool.encode is not None else load_tokenizer(around)
    template = chat_templates(around).get(DEFAULT)
    reads = load_tokenizer(around).named if template is not None and tool.render is None else {}
    return ToolText(
        tool.name,
        tool.encode or (lambda text: own.encode(text, special=False)),  # type: ignore[union-attr]
        tool.surround or (None if own is None else own.encode),
        tool.render or (None if template is None else lambda messages: render(template, messages, reads)),
        frozenset(special_ids(around).eos) if tool.stops is None else tool.stops,
    )


def _ids(source: Tokenizer, tool: ToolText, session: Session) -> Check:
    """Compare the token ids of a fixed set of texts."""
    assert tool.encode is not None
    ways: list[tuple[Callable[[str], list[int]], bool]] = [(tool.encode, False)]
    if tool.surround is not None:
        ways.append((tool.surround, True))
    count = 0
    for text in texts_of(source):
        if not text or session.excuses(text):
            continue
        for encode, special in ways:
            wanted, given = source.encode(text, special=special), list(encode(text))
            count += 1
            if wanted != given:
                return Check(
                    "tokenizer", FAIL, note=f"{text!r}: {tool.name} gives {_few(given)}, the original {_few(wanted)}"
                )
    return Check("tokenizer", PASS, top1=1.0, note=f"{count} texts, by {tool.name}")


def _few(ids: list[int]) -> str:
    return f"[{', '.join(map(str, ids[:24]))}{', ...' if len(ids) > 24 else ''}]"


def _chats(folder: Path, against: LoadedModel, source: Tokenizer, tool: ToolText) -> list[Check]:
    """Compare the text of rendered conversations, and its token ids."""
    template = chat_templates(against.around).get(DEFAULT)
    if template is None:
        return []
    if tool.render is None:
        return [Check("chat", FAIL, note=f"the original has a chat template, but {tool.name} finds none")]
    assert tool.encode is not None
    done = 0
    own = chat_templates(companions_of(folder)).get(DEFAULT, template)
    for messages in CHATS:
        try:  # with limits first: the tool renders in this process, without any
            for text in dict.fromkeys((template, own)):
                _attempt(lambda m, text=text: render(text, m, source.named), messages)
        except TemplateLimit as e:
            return [Check("chat", FAIL, note=str(e))]
        wanted, given = _attempt(lambda m: render(template, m, source.named), messages), _attempt(tool.render, messages)
        if given is None and wanted is not None and messages is CHATS[0]:
            return [Check("chat", UNCHECKED, note=f"{tool.name} can't render this template, but edgeformer can")]
        if wanted != given:
            return [Check("chat", FAIL, note=f"{tool.name} renders {shown(given)}, the original {shown(wanted)}")]
        if wanted is None:
            continue
        done += 1
        ids, theirs = source.encode(wanted, special=False), list(tool.encode(wanted))
        if ids != theirs:
            return [
                Check("chat", FAIL, note=f"{shown(wanted)}: {tool.name} gives {_few(theirs)}, the original {_few(ids)}")
            ]
    return [Check("chat", PASS, top1=1.0, note=f"{done} conversations, by {tool.name}")]


def _attempt(made: Callable[[list[dict[str, str]]], str], messages: list[dict[str, str]]) -> str | None:
    """The rendered text, or None if the template rejects the conversation."""
    try:
        return made(messages)
    except TemplateLimit:
        raise
    except Exception:  # every tool has its own exception types
        return None


def _stops(against: LoadedModel, tool: ToolText) -> Check:
    """Check the stop tokens: the tool must have all of the original's, and may have more."""
    wanted = set(special_ids(against.around).eos)
    if not wanted:
        return Check("stop", UNCHECKED, note="no file of the original names an end-of-sequence token")
    if tool.stops is None or wanted - tool.stops:
        missing = sorted(wanted - (tool.stops or frozenset()))
        return Check(
            "stop", FAIL, note=f"{tool.name} doesn't stop at {_few(missing)}, which are stop tokens of the original"
        )
    return Check("stop", PASS, top1=1.0, note=f"{_few(sorted(wanted))}, by {tool.name}")
