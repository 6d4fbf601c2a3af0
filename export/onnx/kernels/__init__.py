"""The native op library for ONNX Runtime: built on demand from the sources in this folder, and cached.

Every fused op also has a function body in the model, so the library is optional; where it is loaded, its kernels replace the
bodies. Building it needs no ONNX Runtime headers (`ort_abi.h`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeformer.errors import RuntimeUnavailable
from edgeformer.files.cache import cache_folder, lock_of

SOURCES = Path(__file__).parent
ENVIRONMENT = "EDGEFORMER_OPS"
"""Environment variable: the path of a prebuilt library to use instead of building one."""


def _source_files() -> list[Path]:
    return sorted(p for p in SOURCES.iterdir() if p.suffix in (".h", ".cc", ".txt"))


def _cached() -> Path:
    h = hashlib.sha256(f"{platform.machine()} {platform.node()} {sys.platform}".encode())
    for file in _source_files():
        h.update(file.name.encode() + file.read_bytes())
    return cache_folder("kernels") / h.hexdigest()[:16] / "libedgeformer_ops.so"


def _missing_tools() -> str | None:
    if shutil.which("cmake") is None:
        return "cmake is not installed; pip install cmake"
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++", "cl")):
        return "no C++ compiler was found; install g++ or clang++ (macOS: xcode-select --install)"
    return None


def status() -> str:
    """One line for `edgeformer runtimes`: the library's path, that it can be built, or the missing tool."""
    if (given := os.environ.get(ENVIRONMENT)) is not None:
        return f"{given} ({ENVIRONMENT})" + ("" if Path(given).exists() else ": no such file")
    if _cached().exists():
        return f"built, {_cached()}"
    missing = _missing_tools()
    return f"models use their function bodies: {missing}" if missing else "not built yet; built on first use"


def library_path() -> Path:
    """The path of the library, which is built now if necessary (a few seconds).

    Raises:
        RuntimeUnavailable: no compiler or CMake, or the build failed; models then use their function bodies.
    """
    if (given := os.environ.get(ENVIRONMENT)) is not None:
        if not Path(given).exists():
            raise RuntimeUnavailable(f"{ENVIRONMENT} names {given}, which does not exist")
        return Path(given)
    library = _cached()
    if not library.exists():
        if (missing := _missing_tools()) is not None:
            raise RuntimeUnavailable(f"the native kernels can't be built: {missing}. Models also run without them")
        lock = lock_of(library.parent)  # concurrent processes build it only once
        try:
            if not library.exists():
                _build(library)
        finally:
            lock.release()
    return library


def _shortened(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a failed build from its first error on: errors after it often follow from it."""
    text = done.stdout + done.stderr
    first = re.search(r"^.*\berror\b.*$", text, re.M | re.I)
    return text[first.start() :][:2000] if first else text[-2000:]


def _build(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        for command in (
            ["cmake", "-S", str(SOURCES), "-B", scratch, "-DCMAKE_BUILD_TYPE=Release"],
            ["cmake", "--build", scratch, "--config", "Release"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeUnavailable(
                    f"building the native kernels failed: `{' '.join(command)}`:\n{_shortened(done)}"
                )
        made = next(Path(scratch).rglob("libedgeformer_ops.*"))
        os.replace(made, library)
