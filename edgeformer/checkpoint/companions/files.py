"""Where the companion files of a model lie, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.files.json_file import MAX_BYTES, read_json_file

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "bpe.codes", "dict.txt", "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Tokenizer files with fixed names. `TOKENIZER_PATTERNS` match those of SentencePiece (T5's spiece.model, Marian's source.spm and
target.spm, XLM-RoBERTa's sentencepiece.bpe.model) and of tiktoken, whose names differ between families."""
TOKENIZER_PATTERNS = ("*.model", "*.spm", "*.tiktoken", "additional_chat_templates/*.jinja")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.spm", "*.tiktoken")
"""A folder from which a tokenizer can be read has at least one of these."""
EMBEDDER_FILES = ("sentence_bert_config.json", "config_sentence_transformers.json")
"""sentence-transformers' settings that are copied unchanged: maximum length, prompts. Its modules are written anew."""
GENERATION = "generation_config.json"
DOWNLOADED = (
    *TOKENIZER_FILES, *TOKENIZER_PATTERNS, "*.json", "*/config.json", "*.safetensors", "*/model.safetensors",
)  # fmt: skip
"""Patterns of the files downloaded for a hub id; a GGUF file is downloaded only by name."""


@dataclass(frozen=True)
class Embedded:
    """Companions that a model file itself holds: GGUF's `tokenizer.*` metadata, without the prefix."""

    file: Path
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Companions:
    """The files and settings around a model's weights.

    `folders` are searched in order: an adapter's before its base's. `config` is the Hugging Face config, `embedded` a GGUF
    file's metadata, `vocab` the number of rows of the model's embedding (larger ids are invalid); None if unknown.
    """

    folders: tuple[Path, ...] = ()
    config: dict[str, Any] | None = None
    embedded: Embedded | None = None
    vocab: int | None = None

    def find(self, name: str) -> Path | None:
        """The file of this name in the first folder that has one."""
        return next((folder / name for folder in self.folders if (folder / name).exists()), None)

    def read(self, name: str) -> dict[str, Any]:
        """The JSON object of that file; empty if there is none.

        Raises:
            ConfigError: it is not a JSON object.
        """
        file = self.find(name)
        return {} if file is None else read_object(file)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The first folder with a tokenizer; all tokenizer files are taken from there."""
        for folder in self.folders:
            if any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
                return folder
        return None

    def tokenizer_files(self) -> list[Path]:
        """All files of the tokenizer, below `tokenizer_folder`."""
        folder = self.tokenizer_folder
        return [] if folder is None else list(files_of_tokenizer(folder))


def files_of_tokenizer(folder: Path) -> Iterator[Path]:
    """The files in a folder that belong to a tokenizer."""
    for pattern in (*TOKENIZER_FILES, *TOKENIZER_PATTERNS):
        yield from sorted(f for f in folder.glob(pattern) if f.is_file())


def read_object(file: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The content of a JSON file of at most `limit` bytes that holds an object.

    Raises:
        ConfigError: it can't be read, or holds something else.
    """
    data = read_json_file(file, ConfigError, limit=limit)
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return data


def companions_of(folder: Path, vocab: int | None = None) -> Companions:
    """The companions of a model or artefact folder."""
    config = folder / "config.json"
    return Companions(with_tokenizer(folder), read_object(config) if config.exists() else None, None, vocab)


def with_tokenizer(folder: Path) -> tuple[Path, ...]:
    """A model's folder, and the one inside it that holds the tokenizer, where that has its own (as in Core AI's bundles)."""
    inner = folder / "tokenizer"
    here = any(next(folder.glob(pattern), None) for pattern in VOCABULARIES)
    return (folder,) if here or not inner.is_dir() else (folder, inner)
