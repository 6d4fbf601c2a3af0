"""coreai-core, imported when it is needed: it exists for few platforms, and loads Swift's libraries.

Its graph API is `coreai._compiler`, which Apple calls unversioned: the versions that edgeformer was tested with are pinned.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgeformer.errors import ExportError, RuntimeUnavailable

TESTED = ("1.0.0b3",)
"""Versions of coreai-core whose graphs the tests have run."""
EXTRA = "coreai"


def missing() -> str | None:
    """None, or why Core AI can't be used here."""
    try:
        version = importlib.metadata.version("coreai-core")
    except importlib.metadata.PackageNotFoundError:
        return _reason_of_platform() or 'coreai-core is not installed; run: pip install "edgeformer[coreai]"'
    if version not in TESTED:
        return (
            f"coreai-core {version} is installed, and its graph format changes between versions; edgeformer is tested with"
            f' {", ".join(TESTED)}: pip install "coreai-core=={TESTED[-1]}"'
        )
    return None


def _reason_of_platform() -> str | None:
    """Why there is no wheel of coreai-core for this machine, if there is none."""
    here = (sys.platform, platform.machine())
    if here not in (("linux", "x86_64"), ("darwin", "arm64")):
        return (
            f"coreai-core has wheels for Linux on x86-64 and for macOS on Apple silicon only, not for {' '.join(here)}"
        )
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        return f"coreai-core has wheels for Python 3.11 to 3.14 only, and this is {platform.python_version()}"
    return None


def require() -> None:
    """Raise `RuntimeUnavailable` unless Core AI can be used here."""
    if (reason := missing()) is not None:
        raise RuntimeUnavailable(reason)


@cache
def _module(name: str) -> Any:
    require()
    importlib.import_module("coreai.authoring")  # first: the compiler's modules import it in a circle
    return importlib.import_module(name)


def c() -> Any:
    """The dialect's operations."""
    return _module("coreai._compiler.dialects.coreai")


def ir() -> Any:
    """Types and attributes."""
    return _module("coreai._compiler.ir")


def authoring() -> Any:
    """Modules, programs and assets."""
    return _module("coreai.authoring")


def bindings() -> Any:
    """What the dialect's Python modules don't expose: `create_elements_attr`."""
    return _module("coreai._compiler._mlir_libs._coreaiIR._bindings.mlir.dialects.coreai")


def save(module: Any, path: Path, size: int) -> None:
    """Write a module as `path`, a new folder `NAME.aimodel`. size: bytes of its weights.

    This is `AIProgram.save_asset` without its three faults: it ends the process where the disk is full, reads the whole file back
    to hash it, and stamps the time into an asset that could have the same bytes every time.

    Raises:
        OSError: there is no space for the file.
        ExportError: Core AI refuses the module.
    """
    assets = _module("coreai.authoring.asset")
    path.mkdir()
    _try_space(path / "space", size + size // 20 + (4 << 20))
    try:
        asset = assets._AIModelAsset._create(path=str(path), metadata=None)
        code = Path(asset._program_bytecode_path)
        authoring().AIProgram(module)._save_bytecode(code)
        with code.open("rb") as f:
            Path(asset._program_hash_path).write_bytes(hashlib.file_digest(f, "sha256").digest())

        def stamp(made: Any) -> None:
            made._producer = "edgeformer"

        asset.update_metadata(updates=stamp)
        described = path / "metadata.json"  # in an order that changes from run to run
        described.write_text(json.dumps(json.loads(described.read_text()), indent=2, sort_keys=True) + "\n")
    except RuntimeError as e:
        raise ExportError(f"Core AI can't write this model: {str(e).splitlines()[0][:300]}") from e


def _try_space(file: Path, size: int) -> None:
    """Raise the system's error if a file of this size can't be written: Core AI's own writer would end the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("xb") as f:
            os.posix_fallocate(f.fileno(), 0, size)
        file.unlink()
    elif shutil.disk_usage(file.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
