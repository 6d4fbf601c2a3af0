"""The engine's C ABI (`src/capi.cc`) through ctypes."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from edgeformer.backends.native.build import NativeLibrary
from edgeformer.backends.native.program import Instruction
from edgeformer.errors import EdgeformerError, InputError, RuntimeUnavailable

LIBRARY = NativeLibrary(
    Path(__file__).parent / "src",
    "edgeformer_native",
    "EDGEFORMER_NATIVE",
    "the runtime `native` isn't available, and ONNX Runtime runs function bodies",
)
ISA = "EDGEFORMER_ISA"
"""Environment variable: the instruction set to use instead of the fastest (portable, avx2, avx512vnni, neon)."""


def _signatures() -> dict[str, tuple[object, list[object]]]:
    p, i32, i64 = c_void_p, c_int32, c_int64
    return {
        "ef_error": (c_char_p, []),
        "ef_isa": (c_char_p, [c_char_p]),
        "ef_instruction_size": (i32, []),
        "ef_model_new": (i32, [c_char_p, i32, POINTER(p)]),
        "ef_model_program": (i32, [p, p, i32, p, i32, p, i32]),
        "ef_model_delete": (None, [p]),
        "ef_matrix_new": (i32, [p, i32, i64, i64, i64]),
        "ef_matrix_fill": (i32, [p, i32, i64, i64, i64, i64, p, p]),
        "ef_vector_new": (i32, [p, p, i64]),
        "ef_vector_set": (i32, [p, i32, i64, p, i64]),
        "ef_session_new": (i32, [p, i64, i64, i32, i32, POINTER(p)]),
        "ef_session_delete": (None, [p]),
        "ef_session_profile": (None, [p, p]),
        "ef_session_step": (i32, [p, p, p, p, p, p, p, i64, i64, i64, p]),
        "ef_encoder_new": (i32, [p, i64, i32, i32, POINTER(p)]),
        "ef_encoder_delete": (None, [p]),
        "ef_encoder_profile": (None, [p, p]),
        "ef_encoder_run": (i32, [p, p, p, p, i64, i64, p]),
    }


class Library:
    """The loaded library; its functions, with failures as exceptions."""

    def __init__(self, path: Path):
        try:
            self._dll = ctypes.CDLL(str(path))
            for name, (result, arguments) in _signatures().items():
                function = getattr(self._dll, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as e:
            raise RuntimeUnavailable(f"{path} is not a library of edgeformer's native kernels: {e}") from e
        if (size := self._dll.ef_instruction_size()) != ctypes.sizeof(Instruction):
            raise RuntimeUnavailable(
                f"{path} belongs to another version of edgeformer: its instructions have {size} bytes"
            )

    def isa(self, name: str | None = None) -> str:
        """The instruction set that models use: `name`, the one that `EDGEFORMER_ISA` names, or the fastest.

        Raises:
            InputError: this processor doesn't have it.
        """
        name = name or os.environ.get(ISA) or None
        found = self._dll.ef_isa(None if name is None else name.encode())
        if found is None:
            raise InputError(
                f"{name!r} is no instruction set of this processor and library; leave {ISA} unset to use the fastest"
            )
        return found.decode()

    def call(self, name: str, *arguments: object) -> int:
        """Call a function that returns -1 when it fails.

        Raises:
            InputError: it failed; the message is the engine's.
        """
        result = getattr(self._dll, name)(*arguments)
        if result == -1:
            raise InputError(f"native engine: {self._dll.ef_error().decode()}")
        return result

    def do(self, name: str, *arguments: object) -> None:
        """Call a function that can't fail."""
        getattr(self._dll, name)(*arguments)


@cache
def load_library() -> Library:
    """The library, built now if necessary.

    Raises:
        RuntimeUnavailable: it can't be built or loaded.
    """
    return Library(LIBRARY.path())


def pointer(array: np.ndarray | None) -> int | None:
    """An array's address for a call; the caller keeps the array alive. None stays None."""
    return None if array is None else array.ctypes.data


def status() -> str:
    """One line for `edgeformer runtimes`: where the library is, the instruction set in use, huge pages; or what is wrong."""
    found = LIBRARY.status()
    if not LIBRARY.exists():
        return found
    try:
        return f"{found}; instruction set {load_library().isa()}, {huge_pages()}"
    except EdgeformerError as e:  # a list of runtimes shows what is broken, and goes on
        return f"{found}; {e}"


def huge_pages() -> str:
    """Whether memory can be in 2 MB pages (see `src/memory.h`)."""
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not file.exists():
        return "huge pages as the system decides"
    return "no huge pages (never)" if "[never]" in file.read_text() else "huge pages"


def huge_page_mb() -> int | None:
    """Megabytes of this process's memory that lie in huge pages now; None where the system doesn't say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("AnonHugePages:")), None)
