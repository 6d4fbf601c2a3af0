"""Native kernels: they win over function bodies, bodies are their oracle, and nothing needs them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tolerances
from component_cases import COMPONENTS
from support import STDLIB, random_ids, run_cached, saved

from edgeformer.backends.native.library import LIBRARY
from edgeformer.backends.numpy import LinearHandle as NumpyLinear
from edgeformer.backends.numpy import NumpyOps
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ArtefactError, RuntimeUnavailable
from edgeformer.exporters.onnx import handles
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.exporters.onnx.graph import target_class
from edgeformer.exporters.onnx.graph_ops import CONTRIB, DOMAIN, FLOAT, OPSET, GraphTensor
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

needs_compiler = pytest.mark.skipif(LIBRARY.missing() is not None, reason=str(LIBRARY.missing()))
RNG = np.random.default_rng(0)


def session(build, arrays, library, optimized=None, lie=False):
    """A one-op model; with `lie` its function body says 0 whatever comes in."""
    ops = target_class("cpu")(FLOAT)
    values = [ir.Value(name=f"x{i}", type=ir.TensorType(FLOAT), shape=ir.Shape(a.shape)) for i, a in enumerate(arrays)]
    out = build(ops, *(GraphTensor(ops, v, FLOAT, a.shape) for v, a in zip(values, arrays, strict=True)))
    out.value.type = ir.TensorType(FLOAT)
    functions = [f for f, _ in ops.functions.values()]
    if lie:
        for f in functions:
            node = ir.node("Sub", [f.outputs[0], f.outputs[0]], name="lie")
            f.append(node)
            f.outputs[0] = node.outputs[0]
    graph = ir.Graph(values, [out.value], nodes=ops.nodes, opset_imports={"": OPSET, DOMAIN: 1, CONTRIB: 1}, name="k")
    model = ir.Model(graph, ir_version=10, functions=functions)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if library:
        settings.register_custom_ops_library(str(LIBRARY.path()))
    made = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings)
    return made.run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0]


def glu(act):
    def build(ops, x, gate, up, down):
        return ops.glu_ffn(x, *(handles.LinearHandle(ops, [w], "") for w in (gate, up, down)), act=act)

    return build


def glu_expected(act, x, gate, up, down):
    maps = (NumpyLinear(w.astype(np.float64), None) for w in (gate, up, down))
    return NumpyOps().glu_ffn(x.astype(np.float64), *maps, act=act)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 3, 33), (1, 70, 64), (3, 576)])
def test_rms_norm(shape):
    x, weight = floats(*shape), floats(shape[-1])
    expected = NumpyOps().rms_norm(x.astype(np.float64), weight.astype(np.float64), eps=1e-5)
    ours = session(lambda o, a, w: o.rms_norm(a, w, eps=1e-5), [x, weight], library=True)
    assert np.abs(ours - expected).max() <= tolerances.KERNEL * np.abs(expected).max()


@needs_compiler
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh"])
def test_glu_ffn_activations(act):
    arrays = [floats(2, 3, 16), floats(40, 16), floats(40, 16), floats(16, 40)]
    expected = glu_expected(act, *arrays)
    ours = session(glu(act), arrays, library=True)
    assert np.abs(ours - expected).max() <= tolerances.KERNEL * np.abs(expected).max()


@needs_compiler
@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 576, 1536), (7, 33, 65), (128, 64, 96), (1, 1, 1)])
def test_glu_ffn_shapes(rows, width, hidden):
    arrays = [floats(1, rows, width), floats(hidden, width), floats(hidden, width), floats(width, hidden)]
    expected = glu_expected("silu", *arrays)
    ours = session(glu("silu"), arrays, library=True)
    assert np.abs(ours - expected).max() <= 5 * tolerances.KERNEL * np.abs(expected).max()


@needs_compiler
def test_the_kernel_wins_over_the_body():
    """With a body that answers 0, only a kernel gives the right answer."""
    arrays = [floats(1, 2, 8), floats(12, 8), floats(12, 8), floats(8, 12)]
    assert np.abs(session(glu("silu"), arrays, library=False, lie=True)).max() == 0
    ours = session(glu("silu"), arrays, library=True, lie=True)
    expected = glu_expected("silu", *arrays)
    assert np.abs(ours - expected).max() <= tolerances.KERNEL * np.abs(expected).max()


@needs_compiler
def test_a_whole_model(tmp_path):
    export_onnx(load(STDLIB), tmp_path / "m")
    ids = random_ids(4096, 1, 40)
    runs = [
        run_cached(require(name)[0].open(tmp_path / "m", Options(threads=2, capacity=64, variant=v)), ids, None, 20)
        for name, v in (("onnxruntime", ""), ("onnxruntime", "kernels"))
    ]
    assert np.abs(runs[0] - runs[1]).max() <= tolerances.REAL_WEIGHTS
    assert not np.array_equal(*runs), "bit-identical: the kernels did not run"


@needs_compiler
def test_single_ops_in_fp16_are_refused(tmp_path):
    """The kernel of a whole decoder takes fp16; those of single ops don't."""
    loaded, _ = saved(COMPONENTS["shaw"], tmp_path / "s")
    export_onnx(loaded, tmp_path / "m", precision="fp16")
    with pytest.raises(ArtefactError, match="leave out :kernels"):
        require("onnxruntime")[0].open(tmp_path / "m", Options(variant="kernels"))


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEFORMER_CACHE", str(tmp_path))
    monkeypatch.delenv(LIBRARY.environment, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert LIBRARY.status() == f"{LIBRARY.without}: cmake is not installed; pip install cmake"
    with pytest.raises(RuntimeUnavailable, match="pip install cmake"):
        LIBRARY.path()


@needs_compiler
def test_a_failed_build_shows_the_compilers_words(monkeypatch, tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(LIBRARY.sources, sources, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "capi.cc").write_text("this is not C++;\n")
    monkeypatch.setenv("EDGEFORMER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RuntimeUnavailable, match=r"capi\.cc"):
        replace(LIBRARY, sources=sources).path()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_library_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setenv(LIBRARY.environment, str(tmp_path / "mine.so"))
    with pytest.raises(RuntimeUnavailable, match="does not exist"):
        LIBRARY.path()


def test_a_library_from_a_wheel(monkeypatch, tmp_path):
    """Wheels of a platform have it beside the sources; nothing is built."""
    monkeypatch.delenv(LIBRARY.environment, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    installed = replace(LIBRARY, sources=tmp_path / "src")
    (tmp_path / "src").mkdir()
    assert installed.missing() is not None
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libedgeformer_native.so").write_bytes(b"")
    assert installed.missing() is None and installed.path() == tmp_path / "lib" / "libedgeformer_native.so"
    assert installed.status().startswith("installed, ")


def headers():
    """onnxruntime_c_api.h, where Debian's libonnxruntime-dev (or another package) put it."""
    from pathlib import Path

    for base in ("/usr/include", "/usr/local/include", "/opt/homebrew/include"):
        if (found := next(Path(base).rglob("onnxruntime_c_api.h"), None)) is not None:
            return found.parent
    return None


@needs_compiler
@pytest.mark.skipif(headers() is None, reason="no ONNX Runtime headers here (Debian: libonnxruntime-dev)")
def test_the_abi_against_the_real_headers(tmp_path):
    """Every slot number and the size of OrtCustomOp, checked by the compiler."""
    text = (LIBRARY.sources / "ort_abi.h").read_text()
    lines = [line.strip().rstrip(",").split(" = ") for line in text.splitlines()]
    prefixes = ("kCreateS", "kCreateC", "kCustom", "kAdd", "kGet", "kKernel", "kRelease")
    slots = dict(line for line in lines if len(line) == 2 and line[0].startswith(prefixes))
    names = {
        "kKernelInfoGetAttributeFloat": "KernelInfoGetAttribute_float",
        "kKernelInfoGetAttributeString": "KernelInfoGetAttribute_string",
        "kKernelInfoGetAttributeTensor": "KernelInfoGetAttribute_tensor",
        "kKernelInfoGetConstantInputTensor": "KernelInfoGetConstantInput_tensor",
        "kKernelInfoGetInputCount": "KernelInfo_GetInputCount",
        "kKernelInfoGetOutputCount": "KernelInfo_GetOutputCount",
        "kCustomOpDomainAdd": "CustomOpDomain_Add",
    }
    checks = []
    for ours, number in slots.items():
        theirs = names.get(ours, ours[1:].replace("KernelContext", "KernelContext_"))
        checks.append(f'static_assert(offsetof(OrtApi, {theirs}) == {number} * sizeof(void*), "{ours}");')
    program = '#include <cstddef>\n#include "onnxruntime_c_api.h"\n' + "\n".join(checks)
    (tmp_path / "check.cc").write_text(program + "\nint main() {}\n")
    command = ["c++", "-std=c++17", f"-I{headers()}", "-fsyntax-only", str(tmp_path / "check.cc")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(checks) >= 13 and done.returncode == 0, done.stderr


def test_sources_are_installed():
    assert {"ort_library.cc", "ort_abi.h", "engine.h", "CMakeLists.txt"} <= {p.name for p in LIBRARY.sources.iterdir()}
    assert json.dumps(LIBRARY.status())
