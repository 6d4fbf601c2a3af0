"""Which code of a model's folder may run: none, but for files that the user has named (`--trust-code`). See docs/security.md.

Some tools run what a folder's settings name: mlx-lm the Python file `model_file`, ONNX Runtime GenAI the shared library
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
"""Settings files -> keys, at any depth, whose value is code to some tool."""
_HUB_KERNELS = ("attn_implementation", "experts_implementation")
"""Keys of config.json (with any prefix) that transformers takes as code on the hub where the value has a slash."""
_LIBRARY = re.compile(r"\.(so(\.\d+)*|dll|dylib|pyd)$", re.IGNORECASE)
_granted: dict[str, str] = {}


def trust(file: str | Path) -> str:
    """Let this file of a model's folder run as code, in this process and the workers that it starts; its SHA-256.

    It is the content that is trusted: a file that changed since is refused.

    Raises:
        InputError: it can't be read.
    """
    try:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as e:
        raise InputError(f"--trust-code: can't read {file}: {e.strerror}") from e
    _granted[digest] = str(file)
    return digest


def grant(digests: list[str]) -> None:
    """Trust files by their SHA-256, as another process has."""
    _granted.update(dict.fromkeys(digests, ""))


def granted() -> list[str]:
    """The digests of the files that are trusted."""
    return sorted(_granted)


def check_code(folder: Path, own: Mapping[str, str] | None = None) -> None:
    """Refuse a folder whose settings name code that nobody vouches for.

    Args:
        folder: about to be given to a tool that may run code.
        own: file name -> the text that edgeformer itself writes there, which may run.

    Raises:
        ArtefactError: naming the setting, the file, and its digest.
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


def _check_file(folder: Path, settings: Path, key: str, value: Any, own: Mapping[str, str]) -> None:
    file = inside(folder, value, f"{key} in {settings}", ArtefactError)
    try:
        content = file.read_bytes() if file.exists() else None
    except OSError as e:
        raise ArtefactError(f"can't read {file}: {e.strerror}") from e
    if content is None:
        raise ArtefactError(f"{settings} names {value!r} as {key}, and there is no such file")
    digest = hashlib.sha256(content).hexdigest()
    if digest in _granted or (value in own and content == own[value].encode()):
        return
    raise ArtefactError(
        f"{settings} has {key} = {value!r}, which would run as code; edgeformer runs no code of a model's folder. If you have"
        f" read {file} and trust it: --trust-code {file} (SHA-256 {digest})"
    )


def isolated(environment: Mapping[str, str]) -> dict[str, str]:
    """What keeps a Python that is started in a model's folder from importing files of that folder.

    `-P` does so for the process itself, and these for all that it starts. An empty entry of PYTHONPATH means the current folder,
    and gets there by `PYTHONPATH=$PYTHONPATH:...`.
    """
    kept = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(kept)}


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested objects with its value."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
