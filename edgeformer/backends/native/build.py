"""C++ libraries built on demand from sources in the package, and cached by their content and machine."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgeformer.errors import RuntimeUnavailable
from edgeformer.files.cache import cache_folder, lock_of


def _missing_tools() -> str | None:
    if shutil.which("cmake") is None:
        return "cmake is not installed; pip install cmake"
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
        return "no C++ compiler was found; install g++ or clang++ (macOS: xcode-select --install)"
    return None


@dataclass(frozen=True)
class NativeLibrary:
    """A library: the folder of its CMakeLists.txt, its target's name, the environment variable that names a prebuilt one, and
    what happens without it, for messages."""

    sources: Path
    target: str
    environment: str
    without: str

    def _cached(self) -> Path:
        h = hashlib.sha256(f"{platform.machine()} {platform.node()} {sys.platform}".encode())
        for file in sorted(p for p in self.sources.iterdir() if p.suffix in (".h", ".cc", ".txt")):
            h.update(file.name.encode() + file.read_bytes())
        return cache_folder("kernels") / h.hexdigest()[:16] / f"lib{self.target}.so"

    def _installed(self) -> Path:
        """Where a platform's wheel has the library (`setup.py`)."""
        return self.sources.parent / "lib" / f"lib{self.target}.so"

    def _found(self) -> Path | None:
        """The library that came with the wheel, or one built earlier."""
        return next((p for p in (self._installed(), self._cached()) if p.exists()), None)

    def exists(self) -> bool:
        """Whether it is installed, built, or given."""
        given = os.environ.get(self.environment)
        return self._found() is not None if given is None else Path(given).exists()

    def missing(self) -> str | None:
        """None if the library exists or can be built, else the missing tool and how to install it."""
        if (given := os.environ.get(self.environment)) is not None:
            return None if Path(given).exists() else f"{self.environment} names {given}, which does not exist"
        return None if self._found() is not None else _missing_tools()

    def status(self) -> str:
        """One line for `edgeformer runtimes`: the library's path, that it can be built, or the missing tool."""
        if (given := os.environ.get(self.environment)) is not None:
            return f"{given} ({self.environment})" + ("" if Path(given).exists() else ": no such file")
        if (found := self._found()) is not None:
            return f"{'installed' if found == self._installed() else 'built'}, {found}"
        missing = _missing_tools()
        return f"{self.without}: {missing}" if missing else "not built yet; built on first use"

    def path(self) -> Path:
        """The path of the library, which is built now if necessary (up to a minute).

        Raises:
            RuntimeUnavailable: no compiler or CMake, or the build failed.
        """
        if (given := os.environ.get(self.environment)) is not None:
            if not Path(given).exists():
                raise RuntimeUnavailable(f"{self.environment} names {given}, which does not exist")
            return Path(given)
        if self._installed().exists():
            return self._installed()
        library = self._cached()
        if not library.exists():
            if (missing := _missing_tools()) is not None:
                raise RuntimeUnavailable(f"the native kernels can't be built: {missing}. Without them, {self.without}")
            lock = lock_of(library.parent)  # concurrent processes build it only once
            try:
                if not library.exists():
                    self._build(library)
            finally:
                lock.release()
        return library

    def cannot_be_built(self) -> str | None:
        """Build the library now if necessary: None, or why that failed."""
        try:
            self.path()
        except RuntimeUnavailable as e:
            return str(e)
        return None

    def _build(self, library: Path) -> None:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            for command in (
                ["cmake", "-S", str(self.sources), "-B", scratch, "-DCMAKE_BUILD_TYPE=Release"],
                ["cmake", "--build", scratch, "--config", "Release", "--parallel", str(os.cpu_count() or 1)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeUnavailable(
                        f"building the native kernels failed: `{' '.join(command)}`:\n{_shortened(done)}"
                    )
            made = next(p for p in Path(scratch).rglob(f"*{self.target}.*") if p.suffix in (".so", ".dylib", ".dll"))
            os.replace(made, library)


def _shortened(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a failed build from its first error on: errors after it often follow from it."""
    text = done.stdout + done.stderr
    first = re.search(r"^.*\berror\b.*$", text, re.M | re.I)
    return text[first.start() :][:2000] if first else text[-2000:]
