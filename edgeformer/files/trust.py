"""Which code in a model's folder may run: none, except files that the user has named (`--trust-code`). See docs/security.md.

Some tools run code that a folder's settings name: mlx-lm the Python file `model_file`, ONNX Runtime GenAI the shared library
`custom_ops_library` and those of execution providers, transformers attention kernels from the hub. Every runtime that hands a
folder to such a tool calls `check_code` first.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeformer.errors import ArtefactError, InputError
from edgeformer.files.json_file import read_json_file
from edgeformer.files.paths import inside

_CODE_KEYS = {
    "config.json": ("model_file",),
    "tokenizer_config.json": (),
    "genai_config.json": ("custom_ops_library", "backend_path", "library_path", "ep_library_path", "registration_name"),
}
"""Settings file -> keys, at any depth, whose value some tool runs as code."""
_HUB_KERNELS = ("attn_implementation", "experts_implementation")
"""Keys of config.json (with any prefix) that make transformers run code from the hub if the value has a slash."""
_LIBRARY = re.compile(r"\.(so(\.\d+)*|dll|dylib|pyd)$", re.IGNORECASE)
_granted: dict[str, str] = {}


def trust(file: str | Path) -> str:
    """Let a file of a model's folder run as code, in this process and its workers; returns its SHA-256.

    Trust applies to the content: a file that has changed since is refused.

    Raises:
        InputError: the file can't be read.
    """
    try:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as e:
        raise InputError(f"--trust-code: can't read {file}: {e.strerror}") from e
    _granted[digest] = str(file)
    return digest


def grant(digests: list[str]) -> None:
    """Trust files by their SHA-256, as another process does."""
    _granted.update(dict.fromkeys(digests, ""))


def granted() -> list[str]:
    """The digests of the trusted files."""
    return sorted(_granted)


def check_code(folder: Path, own: Mapping[str, str] | None = None) -> None:
    """Refuse a folder whose settings name untrusted code.

    Args:
        folder: the folder that a tool which may run code is about to read.
        own: file name -> the text that edgeformer itself writes there, which may run.

    Raises:
        ArtefactError: there is such code; the message names the setting, the file and its digest.
    """
    for name, keys in _CODE_KEYS.items():
        file = folder / name
        if not file.exists():
            continue
        settings = read_json_file(file, ArtefactError)
        for key, value in walk(settings):
            if any(key.endswith(known) for known in _HUB_KERNELS) and isinstance(value, str) and "/" in value:
                raise ArtefactError(
                    f"{file} has {key} = {value[:80]!r}: code from the hub, which edgeformer never runs; remove the key"
                )
            if value in (None, "", False):
                continue
            if key in keys or (isinstance(value, str) and name == "genai_config.json" and _LIBRARY.search(value)):
                _check_file(folder, file, key, value, own or {})


def _check_file(folder: Path, settings: Path, key: str, value: object, own: Mapping[str, str]) -> None:
    file = inside(folder, value, f"{key} in {settings}", ArtefactError)
    try:
        content = file.read_bytes() if file.exists() else None
    except OSError as e:
        raise ArtefactError(f"can't read {file}: {e.strerror}") from e
    if content is None:
        raise ArtefactError(f"{settings} names {value!r} as {key}, but there is no such file")
    digest = hashlib.sha256(content).hexdigest()
    if digest in _granted or (isinstance(value, str) and value in own and content == own[value].encode()):
        return
    raise ArtefactError(
        f"{settings} has {key} = {value!r}, which would run as code; edgeformer runs no code from a model's folder. If you have"
        f" read {file} and trust it: --trust-code {file} (SHA-256 {digest})"
    )


def isolated(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that keep a Python started in a model's folder from importing files of that folder.

    `-P` does this for the process itself, the variables for its children. An empty entry of PYTHONPATH, which
    `PYTHONPATH=$PYTHONPATH:...` can leave, means the current folder.
    """
    kept = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(kept)}


def walk(value: object) -> Iterator[tuple[str, Any]]:
    """Yield every key of nested objects with its value."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
