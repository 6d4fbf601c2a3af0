"""The whole decoder as one node: the kernel against the function body, as plain ONNX Runtime runs them."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import tolerances
from component_cases import COMPONENTS, ENCODERS
from support import STDLIB, random_ids, saved, small_spec

from edgeformer.backends.native.library import LIBRARY
from edgeformer.checkpoint.loading import load
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.exporters.onnx.one_node import covered
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

pytestmark = pytest.mark.skipif(LIBRARY.missing() is not None, reason=str(LIBRARY.missing()))


def opened(folder, *, library=True, threads=2, name="model.onnx"):
    """ONNX Runtime as any program uses it: no binding, nothing of ours but the library."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 3, threads
    if library:
        settings.register_custom_ops_library(str(LIBRARY.path()))
    return onnxruntime.InferenceSession(str(folder / name), settings)


def empty_past(session, batch, length=0):
    """Zeros for every past key and value."""
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        i.name: np.zeros((batch, i.shape[1], length, i.shape[3]), types[i.type])
        for i in session.get_inputs()
        if i.name.startswith("past_key_values.")
    }


def run(session, ids, mask, past, keep=0):
    """Logits and the present keys and values, named as the next step's past."""
    feed = {"input_ids": ids, "attention_mask": mask, "num_logits_to_keep": np.array([keep], np.int64), **past}
    if "position_ids" in [i.name for i in session.get_inputs()]:
        feed["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    names = [o.name for o in session.get_outputs()]
    made = dict(zip(names, session.run(None, feed), strict=True))
    logits = made.pop("logits")
    return logits, {n.replace("present", "past_key_values"): x for n, x in made.items()}


def steps(session, ids, mask, cuts, length=0):
    """Logits of all positions: `cuts` are the tokens of each step; caches grow, or have `length` slots from the start."""
    past, parts, at = empty_past(session, len(ids), length), [], 0
    for new in cuts:
        logits, past = run(session, ids[:, at : at + new], mask[:, : at + new], past)
        parts.append(logits)
        at += new
    return np.concatenate(parts, 1), past


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stdlib") / "m"
    export_onnx(load(STDLIB), folder)
    return folder


@pytest.mark.parametrize("length", [0, 48])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_kernel_computes_the_body(stdlib, threads, length):
    """Growing caches, and ones of full length without binding: a batch, left-padded."""
    ids, mask = random_ids(4096, 3, 40), np.ones((3, 40), np.int64)
    mask[1, :7] = mask[2, :1] = 0
    cuts = [20, *[1] * 20]
    expected, past = steps(opened(stdlib, library=False), ids, mask, cuts, length)
    found, present = steps(opened(stdlib, threads=threads), ids, mask, cuts, length)
    real = mask.astype(bool)
    assert np.abs(found - expected)[real].max() <= tolerances.REAL_WEIGHTS
    for (
        name
    ) in past:  # of the row without padding: GroupQueryAttention counts the slots of others from their first real token
        assert past[name].shape == present[name].shape
        assert np.abs(past[name] - present[name])[0, :, :40].max() <= 1e-4


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7, 3, 30], [13, 4, 4, 4, 15]])
def test_prompts_in_pieces(stdlib, cuts):
    """Chunked prefill, and several tokens at once in the middle of a sequence."""
    ids, mask = random_ids(4096, 1, 40), np.ones((1, 40), np.int64)
    session = opened(stdlib)
    whole, _ = steps(opened(stdlib, library=False), ids, mask, [40])
    assert np.abs(steps(session, ids, mask, cuts)[0] - whole).max() <= tolerances.REAL_WEIGHTS
    last, _ = run(session, ids, mask, empty_past(session, 1), keep=1)
    assert np.abs(last[0, 0] - whole[0, -1]).max() <= tolerances.REAL_WEIGHTS


@pytest.mark.parametrize("head_dim", [4, 20, 34])
def test_heads_that_are_no_whole_vectors(head_dim, tmp_path):
    """Keys and values lie as ONNX has them, in rows of any length."""
    from edgeformer.layers.rope import Rope

    saved(small_spec(head_dim=head_dim, position=Rope(dim=head_dim)), tmp_path / "s")
    for precision in ("fp32", "fp16"):
        export_onnx(load(tmp_path / "s"), tmp_path / precision, precision=precision)
        ids, mask = random_ids(31, 2, 30), np.ones((2, 30), np.int64)
        expected, _ = steps(opened(tmp_path / precision, library=False), ids, mask, [12, *[1] * 18])
        found, _ = steps(opened(tmp_path / precision), ids, mask, [12, *[1] * 18])
        limit = tolerances.REAL_WEIGHTS if precision == "fp32" else 2e-2 * np.abs(expected).max()
        assert np.abs(found - expected).max() <= limit


def test_one_session_on_two_threads(stdlib):
    """ONNX Runtime lets threads share a session."""
    session, ids = opened(stdlib), random_ids(4096, 1, 24)
    mask = np.ones((1, 24), np.int64)
    expected, _ = steps(session, ids, mask, [12, *[1] * 12])
    found: list[np.ndarray] = []

    def work():
        for _ in range(5):
            found.append(steps(session, ids, mask, [12, *[1] * 12])[0])

    workers = [threading.Thread(target=work) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(found) == 15 and max(np.abs(f - expected).max() for f in found) <= 1e-5


def test_genai_with_the_library(stdlib):
    """The folder stays as it is: GenAI gets links to its files, with the library beside them."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("pip install onnxruntime-genai")
    ids, before = random_ids(4096, 1, 30), sorted(p.name for p in stdlib.iterdir())
    options = Options(threads=2, capacity=64)
    plain, kernels = (
        require("ort_genai")[0].open(stdlib, replace(options, variant=variant)) for variant in ("", "kernels")
    )
    for session in (plain, kernels):
        session.forward(ids[:, :20])
    made = [np.stack([s.forward(ids[:, i : i + 1]) for i in range(20, 30)]) for s in (plain, kernels)]
    assert np.abs(made[0] - made[1]).max() <= tolerances.REAL_WEIGHTS
    assert not np.array_equal(*made), "bit-identical: the kernel did not run"
    assert sorted(p.name for p in stdlib.iterdir()) == before


def test_what_is_covered(tmp_path):
    """Whatever the native engine covers becomes one node; of the rest, the export says why it doesn't."""
    refused = {name for name, spec in COMPONENTS.items() if isinstance(covered(spec), str)}
    assert refused == {"additive", "shaw", "shaw-keys-only"}
    loaded, _ = saved(COMPONENTS["shaw"], tmp_path / "s")
    made = export_onnx(loaded, tmp_path / "m")
    assert not made.manifest["one_node"] and any("native library" in note for note in made.notes)


def test_the_file_is_valid_and_carries_its_definition(stdlib):
    """onnx's checker and shape inference take it; all weights are the node's inputs."""
    model = onnx.load(stdlib / "model.onnx")
    onnx.checker.check_model(model)
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("Decoder", "edgeformer")
    function = next(f for f in model.functions if f.name == "Decoder")
    assert len(function.input) == len(node.input) and len(function.node) > 50
    assert {i.name for i in model.graph.initializer} <= set(node.input)


def test_malformed_calls_are_refused(stdlib):
    session = opened(stdlib)
    ids, mask, past = random_ids(4096, 1, 8), np.ones((1, 8), np.int64), empty_past(session, 1)
    first = next(iter(past))
    longer = {**past, first: np.zeros((1, past[first].shape[1], 4, past[first].shape[3]), np.float32)}
    other_heads = {**past, first: np.zeros((1, past[first].shape[1] + 1, 0, past[first].shape[3]), np.float32)}
    for wrong in (
        (ids * 0 + 5000, mask, past), (ids * 0 - 1, mask, past), (ids, mask[:, :3], past),
        (ids, np.ones((1, 20), np.int64), past),
        (ids, np.ones((2, 8), np.int64), past), (ids, mask, longer), (ids, mask, other_heads), (ids, mask, past, -1),
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"edgeformer|out of range|INVALID_ARGUMENT"):
            run(session, *wrong)
    assert np.isfinite(run(session, ids, mask, past)[0]).all()


_FUZZ = """
import sys
import numpy as np, onnx, onnxruntime
folder, library, seed = sys.argv[1:]
model = onnx.load(folder + "/model.onnx", load_external_data=False)
attribute = next(a for a in model.graph.node[0].attribute if a.name == "program")
whole = np.frombuffer(attribute.t.raw_data, np.int32)
rng, ends = np.random.default_rng(int(seed)), {"refused": 0, "ran": 0}
for n in range(80):
    words = whole.copy()
    if n % 10 == 9:
        words = words[: rng.integers(0, len(words))]
    else:
        for _ in range(rng.integers(1, 4)):
            bits = int(rng.choice([0, -1, 1, 7, 2**31 - 1, -2**31, 65536, 2**24, 2**27, rng.integers(-100, 5000)]))
            words[rng.integers(0, len(words))] = bits
    attribute.t.raw_data, attribute.t.dims[0] = words.tobytes(), words.nbytes
    onnx.save(model, folder + "/fuzzed.onnx")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.register_custom_ops_library(library)
    try:
        session = onnxruntime.InferenceSession(folder + "/fuzzed.onnx", settings)
        feed = {"input_ids": np.full((2, 5), 3), "attention_mask": np.ones((2, 5), np.int64)}
        for i in session.get_inputs():
            if i.name == "position_ids":
                feed[i.name] = np.arange(5)[None].repeat(2, 0)
            if i.name == "token_type_ids":
                feed[i.name] = np.zeros((2, 5), np.int64)
            if i.name.startswith("past"):
                feed[i.name] = np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32)
        session.run(None, feed)
        ends["ran"] += 1
    except Exception as e:
        ends["refused"] += 1
print(ends)
"""


@pytest.mark.parametrize("name", ["gqa", "learned", "moe", "ffn-gated-bias", "mla", "encoder-pooled-mlm"])
def test_damaged_programs_never_crash(name, tmp_path):
    """Words of the attribute changed at random: refused, or computed (some words are only numbers), in a process that lives."""
    saved((COMPONENTS | ENCODERS)[name], tmp_path / "s")
    export_onnx(load(tmp_path / "s"), tmp_path / "m")
    command = [sys.executable, "-c", _FUZZ, str(tmp_path / "m"), str(LIBRARY.path()), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ends = ast.literal_eval(done.stdout)
    assert ends["ran"] > 10 and ends["refused"] > 10


def test_an_empty_past_without_memory(stdlib):
    """ONNX Runtime's allocator gives an empty tensor a null pointer."""
    session, ids = opened(stdlib), random_ids(4096, 1, 12)
    expected, _ = steps(session, ids, np.ones((1, 12), np.int64), [12])
    binding = session.io_binding()
    for name, x in (("input_ids", ids), ("attention_mask", np.ones((1, 12), np.int64))):
        binding.bind_cpu_input(name, x)
    for name, x in empty_past(session, 1).items():
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(x.shape, x.dtype.type)
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.get_outputs()[0].numpy(), expected)


def test_the_result_does_not_depend_on_the_threads(stdlib):
    ids, mask = random_ids(4096, 1, 300), np.ones((1, 300), np.int64)
    cuts = [260, *[1] * 40]
    alone, _ = steps(opened(stdlib, threads=1), ids, mask, cuts)
    for threads in (2, 5):
        assert np.array_equal(steps(opened(stdlib, threads=threads), ids, mask, cuts)[0], alone)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["sinusoidal", "learned", "rope-longrope"])
def test_positions_in_half_precision(name, precision, tmp_path):
    """Tables of positions and angles are the kernel's own, in float32, whatever the graph computes in."""
    loaded, _ = saved(COMPONENTS[name], tmp_path / "s")
    made = export_onnx(loaded, tmp_path / "m", precision=precision)
    assert made.manifest["one_node"]
    ids, mask = random_ids(loaded.spec.vocab, 2, 20), np.ones((2, 20), np.int64)
    mask[1, :3] = 0
    expected, _ = steps(opened(tmp_path / "m", library=False), ids, mask, [10, *[1] * 10])
    found, _ = steps(opened(tmp_path / "m"), ids, mask, [10, *[1] * 10])
    limit = 1e-4 if precision == "fp32" else 2e-2 * np.abs(expected).max()
    assert np.abs(found - expected)[mask.astype(bool)].max() <= limit
