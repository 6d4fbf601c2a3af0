"""A Metal kernel as a shared library: rewritten where Metal is not C++, compiled by g++ against the shim, run by the runtime."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-O1", "-std=gnu++20", "-shared", "-fPIC", "-w", "-fno-math-errno", "-ffp-contract=off"]
FLAGS += ["-ftrivial-auto-var-init=pattern"]  # what was not initialised is no zero by chance
ATTRIBUTES = {  # Metal's attribute -> the runtime's field
    **{name: name for name in (
        "thread_position_in_grid", "thread_position_in_threadgroup", "threadgroup_position_in_grid", "threadgroups_per_grid",
        "threads_per_grid", "threads_per_threadgroup", "dispatch_threads_per_threadgroup",
    )},
    "thread_index_in_threadgroup": "thread_index",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
}  # fmt: skip


class EmulationError(Exception):
    """The kernel doesn't compile, or broke a rule while it ran."""


def available() -> str | None:
    """None, or why kernels can't be emulated here."""
    return None if shutil.which(COMPILER) else f"no C++ compiler ({COMPILER})"


def rewrite(source: str, function_constants: dict[str, int]) -> str:
    """Metal as C++: no instantiations with attributes, function constants with values, threadgroup storage as references."""
    source = re.sub(r'template\s*\[\[host_name\("[^"]*"\)\]\][^;]*;', "", source)

    def fixed(m: re.Match) -> str:
        return f"static const {m[1]} {m[2]} = ({m[1]})({int(function_constants.get(m[2], 0))});"

    source = re.sub(r"constant\s+(\w+)\s+(\w+)\s*\[\[function_constant\(\d+\)\]\]\s*;", fixed, source)
    count = 0

    def stored(m: re.Match) -> str:
        nonlocal count
        count += 1
        return f"auto& {m[2]} = metal::threadgroup_storage<{m[1]}{m[3]}>({count});"

    declaration = (
        r"(?<![\w*,(<] )(?<!const )\bthreadgroup\s+([A-Za-z_][\w:]*(?:<[^;()]*?>)?)\s+(\w+)\s*((?:\[[^\]]+\])*)\s*;"
    )
    source = re.sub(declaration, stored, source)
    if left := re.findall(r"^\s*threadgroup\s+\w+\s+\w+\s*\[[^;]*;", source, re.M):
        raise EmulationError(f"threadgroup storage of a form that isn't known: {left}")
    return source


class Program:
    """One kernel, compiled.

    Args:
        source: its Metal text, without what MLX puts before it.
        kernel: the function's name.
        template: template arguments as text, `float, 64`.
        constants: values of function constants.
        headers: what to include first, from the shim or MLX's wheel.
        include: the folder of MLX's headers.
    """

    def __init__(
        self, source: str, kernel: str, template: str, constants: dict[str, int], headers: list[str], include: str
    ):
        body = rewrite(source, constants)
        text = "".join(f'#include "{h}"\n' for h in headers) + body + _entry(body, kernel, template)
        self._library = ctypes.CDLL(str(_compiled(text, include)))
        self._runtime = _runtime()
        self.statistics: dict[str, int] = {}

    def run(
        self, buffers: list[np.ndarray], outputs: list[int], grid: tuple, threadgroup: tuple, order: int
    ) -> list[np.ndarray]:
        """Launch it; the buffers numbered `outputs` afterwards. Backward schedules also put buffers *after* a guard page.

        Raises:
            EmulationError: a barrier not all threads reach, a shuffle from an idle lane, too much threadgroup memory, ...
        """
        runtime = self._runtime
        runtime.msl_free_all()
        places = []
        for a in buffers:
            place = runtime.msl_allocate(max(-(-a.nbytes // 16) * 16, 16), int(order != 1))
            ctypes.memmove(place, np.ascontiguousarray(a).ctypes.data, a.nbytes)
            places.append(place)
        pointers = (ctypes.c_void_p * len(places))(*places)
        counts, message = (ctypes.c_uint64 * 4)(), ctypes.create_string_buffer(300)
        entry = ctypes.cast(self._library.msl_entry, ctypes.c_void_p)
        sizes = [(ctypes.c_uint32 * 3)(*size) for size in (grid, threadgroup)]
        failed = runtime.msl_run(entry, pointers, *sizes, order, counts, message, 300)
        names = ("simd_operations", "divergent_operations", "barriers", "threadgroup_bytes")
        self.statistics = dict(zip(names, counts, strict=True))
        if failed:
            raise EmulationError(message.value.decode())
        results = []
        for i in outputs:
            result = np.empty_like(buffers[i])
            ctypes.memmove(result.ctypes.data, places[i], result.nbytes)
            results.append(result)
        return results


def _entry(body: str, kernel: str, template: str) -> str:
    """A C function that hands buffers and the thread's place to the kernel."""
    start = re.search(rf"void\s+{re.escape(kernel)}\s*\(", body)
    assert start, f"there is no function {kernel}"
    arguments, call, buffer = _split(body[start.end() : _closing(body, start.end() - 1)]), [], 0
    for argument in arguments:
        attribute = re.search(r"\[\[\s*(\w+)", argument)
        declared = re.sub(r"\[\[.*?\]\]", "", argument, flags=re.S).strip()
        if attribute and attribute[1] in ATTRIBUTES:
            field = ATTRIBUTES[attribute[1]]
            scalar = re.match(r"(uint|ushort|uint32_t)\s", declared)
            if field in ("thread_index", "lane", "simdgroup", "simdgroups"):
                call.append(f"thread_->{field}")
            else:
                call.append(
                    f"thread_->{field}.x"
                    if scalar
                    else f"uint3{{thread_->{field}.x, thread_->{field}.y, thread_->{field}.z}}"
                )
            continue
        if "*" in declared:
            call.append(f"msl_pointer{{buffers[{buffer}]}}")
        else:
            kind = re.sub(r"\b(device|constant|threadgroup|thread)\b|&|\w+\s*$", "", declared).strip()
            call.append(f"*({kind}*)buffers[{buffer}]")
        buffer += 1
    function = f"{kernel}<{template}>" if template else kernel
    return f"""
struct msl_pointer {{ void* p; template <class T> operator T*() const {{ return (T*)p; }} }};
extern "C" void msl_entry(void** buffers, const msl_thread* thread_) {{ {function}({", ".join(call)}); }}
"""


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise EmulationError("unbalanced parentheses")


def _split(text: str) -> list[str]:
    """Arguments, at commas outside brackets."""
    parts, depth, part = [], 0, ""
    for c in text:
        depth += (c in "(<[") - (c in ")>]")
        if c == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += c
    return [*parts, part] if part.strip() else parts


@functools.cache
def _folder() -> Path:
    """Where compiled kernels are kept, apart by the shim's content."""
    h = hashlib.sha256(" ".join([COMPILER, *FLAGS]).encode())
    for file in sorted(HERE.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            h.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"edgeformer-metal-{os.getuid()}-{h.hexdigest()[:12]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _build(target: Path, source: Path, *extra: str) -> None:
    """Compile, and put in place in one step: tests run in several processes."""
    with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        made = Path(scratch) / "made.so"
        command = [COMPILER, *FLAGS, "-o", str(made), str(source), *extra]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise EmulationError("it does not compile:\n" + done.stderr[:3000])
        os.replace(made, target)


@functools.cache
def _runtime() -> ctypes.CDLL:
    library = _folder() / "libruntime.so"
    if not library.exists():
        _build(library, HERE / "runtime.cpp")
    loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    loaded.msl_allocate.restype = ctypes.c_void_p
    loaded.msl_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
    return loaded


def _compiled(text: str, include: str) -> Path:
    _runtime()
    name = hashlib.sha256((text + include).encode()).hexdigest()[:24]
    library = _folder() / f"{name}.so"
    if not library.exists():
        source = _folder() / f"{name}-{os.getpid()}.cpp"
        source.write_text(text)
        _build(library, source, f"-I{HERE / 'shim'}", f"-I{include}", str(_folder() / "libruntime.so"), "-lm")
        source.unlink()
    return library
