"""What the native engine refuses, and that `program.py` declares what the C++ sources do."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import STDLIB

from edgeformer.backends.native.library import LIBRARY, load_library, status
from edgeformer.backends.native.model import NativeDecoder, NativeModel
from edgeformer.backends.native.program import ACTS, TILE, Instruction, Kind, Op
from edgeformer.backends.native.record import record
from edgeformer.checkpoint.loading import load
from edgeformer.cli import cli
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

pytestmark = pytest.mark.skipif(LIBRARY.missing() is not None, reason=str(LIBRARY.missing()))


def model_of(**numbers):
    """The engine's answer to one malformed instruction."""
    library, handle = load_library(), ctypes.c_void_p()
    library.call("ef_model_new", None, 10, ctypes.byref(handle))
    fields = dict(
        op=Op.ADD,
        dst=0,
        src=0,
        other=-1,
        total=-1,
        matrix=-1,
        weight=-1,
        bias=-1,
        table=-1,
        slopes=-1,
        sinks=-1,
        width=8,
    )
    code = (Instruction * 1)(Instruction(**fields | numbers))
    widths = np.array([32], np.int32)
    try:
        library.call("ef_model_program", handle, widths.ctypes.data, 1, ctypes.addressof(code), 1, None, 0)
    finally:
        library.do("ef_model_delete", handle)


def test_a_well_formed_instruction():
    model_of()


@pytest.mark.parametrize(
    "wrong",
    [{"op": 99}, {"op": -1}, {"dst": 1}, {"src": 5}, {"src": -1}, {"width": 33}, {"width": 0}, {"dst_at": 30}, {"other": 3},
     {"weight": 0}, {"op": Op.LINEAR}, {"op": Op.LINEAR, "matrix": 0}, {"op": Op.ATTEND, "cache": 0}, {"op": Op.APPEND},
     {"act": 77}, {"quantize": 1, "dst_at": 8}, {"op": Op.NORM, "count": 5}],
)  # fmt: skip
def test_malformed_instructions_are_refused(wrong):
    with pytest.raises(InputError, match="malformed"):
        model_of(**wrong)


def test_tokens_and_lengths_are_checked():
    loaded = load(STDLIB)
    decoder = NativeDecoder(NativeModel(record(loaded.spec, 16), loaded.weights, 16))
    with pytest.raises(InputError, match="out of range"):
        decoder.step(np.array([[loaded.spec.vocab]]))
    with pytest.raises(InputError, match="don't fit the cache"):
        decoder.step(np.zeros((1, 17), np.int64))


def test_the_mirrors_of_the_sources():
    """`program.py` repeats declarations of the C++ sources, in their order."""
    engine, kernels = ((LIBRARY.sources / name).read_text("utf-8") for name in ("engine.h", "kernels.h"))

    def enumerators(source, name):
        body = re.search(rf"enum class {name} : int32_t {{(.*?)}};", source, re.S)
        return [n.upper() for n in re.findall(r"\bk(\w+)", re.sub(r"//.*", "", body[1]))]

    assert enumerators(engine, "Op") == [op.name for op in sorted(Op)]
    spelled = {"F32": "FP32", "F16": "FP16", "Q8EXACT": "Q8_EXACT", "Q4EXACT": "Q4_EXACT"}
    assert [spelled.get(n, n) for n in enumerators(kernels, "Kind")] == [kind.name for kind in sorted(Kind)]
    acts = ["identity" if a == "NONE" else a.lower() for a in enumerators(kernels, "Act")]
    assert acts == [act.replace("_", "") for act in ACTS]
    assert int(re.search(r"kLanes = (\d+)", kernels)[1]) == TILE
    body = re.sub(r"//.*", "", re.search(r"struct Instruction {(.*?)};", engine, re.S)[1])
    types = {"Op": ctypes.c_int32, "int32_t": ctypes.c_int32, "float": ctypes.c_float}
    fields = [
        (name, types[kind]) for kind, names in re.findall(r"(\w+) ([^;]+);", body) for name in re.findall(r"\w+", names)
    ]
    assert fields == [(name, kind) for name, kind in Instruction._fields_]


def test_an_instruction_set_that_is_not_here(monkeypatch):
    monkeypatch.setenv("EDGEFORMER_ISA", "sse9")
    with pytest.raises(InputError, match="'sse9'"):
        load_library().isa()
    monkeypatch.setenv("EDGEFORMER_NATIVE", str(LIBRARY.path()))  # built: the list shows what is wrong, and goes on
    assert "'sse9'" in status()
    assert CliRunner().invoke(cli, ["runtimes"]).exit_code == 0


def test_a_library_of_another_version(monkeypatch, tmp_path):
    from edgeformer.backends.native.library import Library

    (tmp_path / "mine.so").write_bytes(b"no library")
    with pytest.raises(RuntimeUnavailable, match=r"mine\.so is not a library"):
        Library(tmp_path / "mine.so")


def test_what_a_row_says_of_the_engine():
    facts = require("native")[0].open(load(STDLIB), Options(threads=1, capacity=16)).facts()
    assert facts["isa"] == load_library().isa()
    assert (facts["huge_page_mb"] is None) == (not Path("/proc/self/smaps_rollup").exists())
