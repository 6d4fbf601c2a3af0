"""A tool's own text processing around a model: token ids, rendered chats, and stop ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class ToolText:
    """A tool's own reading of an artefact's companion files. A field is None if the tool lacks that function.

    encode: text -> ids without the special tokens added around every text; special tokens inside the text are recognised.
    surround: text -> ids with them. render: messages -> the prompt for the answer. stops: ids at which the tool itself stops.
    """

    name: str
    encode: Callable[[str], list[int]] | None = None
    surround: Callable[[str], list[int]] | None = None
    render: Callable[[Messages], str] | None = None
    stops: frozenset[int] | None = None


def transformers_text(folder: Path) -> ToolText:
    """The `ToolText` of transformers for a folder, by its AutoTokenizer and GenerationConfig."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    defaults = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    try:
        ends = transformers.GenerationConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id
    except OSError:
        ends = getattr(defaults, "eos_token_id", None)

    def render(messages: Messages) -> str:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    return ToolText(
        "transformers",
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda text: tokenizer(text)["input_ids"],
        render if tokenizer.chat_template else None,
        frozenset(() if ends is None else ends if isinstance(ends, list) else (ends,)),
    )
