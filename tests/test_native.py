"""The native engine: each product against float64, int8 activations against an emulation of their rounding, whole models against
the numpy back end in float64, on every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tolerances
from component_cases import COMPONENTS, ENCODERS, PREFIXED
from hypothesis import given, settings
from hypothesis import strategies as st
from support import STDLIB, random_ids, run_cached, saved

from edgeformer.backends.native.encoder import NativeEncoder
from edgeformer.backends.native.library import LIBRARY, load_library
from edgeformer.backends.native.model import NativeDecoder, NativeModel
from edgeformer.backends.native.program import ACTS, Kind, Op, Part, Program, Recorded
from edgeformer.backends.native.record import record
from edgeformer.backends.native.values import NotCovered
from edgeformer.backends.numpy import NumpyModel, NumpyOps
from edgeformer.checkpoint.loading import load
from edgeformer.errors import InputError
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import QUANTIZED, GroupTensor, dequantize, quantize
from edgeformer.weights.safetensors_file import StoredTensor

pytestmark = pytest.mark.skipif(LIBRARY.missing() is not None, reason=str(LIBRARY.missing()))


def isas():
    """The instruction sets that run here; the portable one always does."""
    if LIBRARY.missing() is not None:
        return []
    return [name for name in ("portable", "avx2", "avx512vnni", "neon") if _runs(name)]


def _runs(name):
    try:
        return load_library().isa(name) == name
    except InputError:
        return False


class Fixed(StoredTensor):
    """A tensor in memory in place of one in a file."""

    def __init__(self, array, dtype):
        super().__init__("w", None, 0, array.nbytes, dtype, array.shape)
        object.__setattr__(self, "array", array)

    def read(self):
        return self.array


class FixedCodes(GroupTensor):
    """Codes and scales in memory."""

    def __init__(self, codes, scales, format, shape):
        plain = StoredTensor("s", None, 0, scales.nbytes, "F16", scales.shape)
        super().__init__("w", None, 0, codes.nbytes, "U8", shape, format, plain)
        object.__setattr__(self, "held", (codes, scales))

    def quantized(self):
        return self.held


def stored(weight, kind):
    """A weight [outputs, inputs] in a kind: what the engine reads, and its values in float64."""
    import ml_dtypes

    if kind.grouped:
        format = QUANTIZED[kind.name[:2].lower()]
        codes, scales = quantize(weight, format)
        exact = dequantize(codes, scales, format).astype(np.float64)
        return Source(FixedCodes(codes, scales, format, weight.shape), None), exact
    dtypes = {Kind.FP32: ("F32", np.float32), Kind.FP16: ("F16", np.float16), Kind.BF16: ("BF16", ml_dtypes.bfloat16)}
    name, dtype = dtypes[kind]
    rounded = weight.astype(dtype)
    return Source(Fixed(rounded, name), None), rounded.astype(np.float64)


def rounded_to_int8(x):
    """Activations as a quantized product sees them: 8 bits, groups of 32, scale = largest / 127, in float32."""
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    top = np.abs(groups).max(-1, keepdims=True)
    inverse = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    codes = np.rint(groups * inverse)
    return (codes.astype(np.float64) * (top / np.float32(127)).astype(np.float64)).reshape(x.shape)


def run(program, weights, tokens, *, isa, threads=1, capacity=64, exact=False):
    """The rows that a program makes of token ids [B, T], in one step; guards around the result stay as they were."""
    model = NativeModel(program, Weights(weights), capacity, isa=isa, exact=exact)
    decoder = NativeDecoder(model, batch=len(tokens), threads=threads, cache="fp32")
    size = tokens.size * program.vocab
    whole = np.full(size + 512, 7.25, np.float32)
    out = whole[256 : 256 + size].reshape(*tokens.shape, program.vocab)
    decoder._step(tokens, None, None, 0, tokens.shape[1], None, out)
    assert (whole[:256] == 7.25).all() and (whole[-256:] == 7.25).all()
    return out


def product(kind, inputs, outputs, rows, *, isa, threads=1, act="identity", bias=True, glu=False, seed=0, fault=None):
    """A program of one product of random rows, its result, and the one in float64. fault: a value in the middle of row 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    if fault is not None:
        x[1, inputs // 2] = fault
    names = ["a", "b"] if glu else ["a"]
    made = {n: stored(rng.normal(size=(outputs, inputs)).astype(np.float32) * 0.1, kind) for n in names}
    biases = {f"{n}.bias": rng.normal(size=outputs).astype(np.float32) for n in names if bias}
    parts = tuple(Part(n, inputs, outputs, f"{n}.bias" if bias else None) for n in names)
    vocab = max(outputs, rows)  # ids are rows of the table
    program = Program(vocab, tables={"rows": np.concatenate([x, np.zeros((vocab - rows, inputs), np.float32)])})
    given_rows = program.buffer(inputs, kept=False)
    last = program.buffer(inputs, kept=True)
    program.code = [
        Recorded(Op.EMBED, given_rows, parts=(Part("rows", inputs, vocab),), numbers={"width": inputs, "scale": 1.0}),
        Recorded(Op.LAST, last, given_rows, numbers={"width": inputs}),
        Recorded(Op.GLU if glu else Op.LINEAR, None, last, parts=parts, numbers={"act": ACTS.index(act)}),
    ]
    weights = {n: source for n, (source, _) in made.items()}
    weights |= {n: Source(Fixed(b, "F32"), None) for n, b in biases.items()}
    exact = kind.grouped and not kind.rounds
    found = run(program, weights, np.arange(rows)[None], isa=isa, threads=threads, capacity=max(rows, 64), exact=exact)
    seen = rounded_to_int8(x) if kind.rounds else x.astype(np.float64)
    ys = [seen @ made[n][1].T + (biases[f"{n}.bias"].astype(np.float64) if bias else 0) for n in names]
    terms = np.abs(seen) @ np.abs(made["a"][1]).T + 1
    activated = ys[0] if act == "identity" else NumpyOps().activate(act, ys[0])
    return found[0, :, :outputs], activated * ys[1] if glu else activated, terms


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", [(32, 16, 1), (64, 33, 2), (96, 7, 9), (160, 40, 5), (288, 100, 23)])
def test_a_product(kind, shape, isa):
    inputs, outputs, rows = shape
    found, expected, terms = product(kind, inputs, outputs, rows, isa=isa)
    assert (np.abs(found - expected) / terms).max() <= tolerances.KERNEL


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("act", ACTS)
def test_gated_products_and_activations(act, isa):
    for glu in (True, False):
        found, expected, terms = product(Kind.FP32, 48, 20, 5, isa=isa, act=act, glu=glu)
        assert (np.abs(found - expected) / np.maximum(terms, np.abs(expected))).max() <= 2 * tolerances.KERNEL


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", Kind)
def test_a_fault_stays_visible_and_in_its_row(kind, fault, isa):
    """Int8 codes have no NaN and no infinity: the scales carry them."""
    for glu in (False, True):
        with np.errstate(invalid="ignore"):  # the oracle's own infinities
            made = product(kind, 96, 20, 3, isa=isa, act="silu", glu=glu, bias=False, fault=fault)
        assert not np.isfinite(made[0][1]).any()
        found, expected, terms = (x[[0, 2]] for x in made)
        assert (np.abs(found - expected) / terms).max() <= 2 * tolerances.KERNEL


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_products_of_any_shape(data):
    """Shapes, kinds, threads and instruction sets at random."""
    kind = data.draw(st.sampled_from(list(Kind)))
    inputs = data.draw(st.integers(1, 9)) * 32 if kind.grouped else data.draw(st.integers(1, 200))
    shape = inputs, data.draw(st.integers(1, 90)), data.draw(st.integers(1, 40))
    glu, threads = data.draw(st.booleans()), data.draw(st.sampled_from([1, 2, 3, 8]))
    found, expected, terms = product(
        kind, *shape, isa=data.draw(st.sampled_from(isas())), threads=threads, bias=data.draw(st.booleans()), glu=glu
    )
    assert (np.abs(found - expected) / np.maximum(terms, np.abs(expected))).max() <= (
        2 if glu else 1
    ) * tolerances.KERNEL


def covered():
    """Components that the engine has instructions for."""
    for name, spec in COMPONENTS.items():
        try:
            record(spec, 1)
        except NotCovered:
            continue
        yield name


NOT_COVERED = {"additive", "shaw", "shaw-keys-only"}


def test_what_is_covered():
    """Everything but these, which are refused with the reason."""
    assert set(COMPONENTS) - set(covered()) == NOT_COVERED
    runtime, _ = require("native")
    for name in NOT_COVERED:
        assert "native back end" in (runtime.refuses(COMPONENTS[name], Options()) or "")


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", covered())
def test_component(case, isa, tmp_path, monkeypatch):
    """Two blocks, a prefill of 14 tokens and 10 single ones, the second row with padding on the left and a hole."""
    monkeypatch.setenv("EDGEFORMER_ISA", isa)
    spec = COMPONENTS[case]
    loaded, weights = saved(spec, tmp_path / "model")
    ids, valid = random_ids(31, 2, 24), np.ones((2, 24), np.int64)
    valid[1, :5] = valid[1, 9] = 0
    expected = NumpyModel(spec, weights, np.float64)(ids, valid)[0]["logits"]
    session = require("native")[0].open(loaded, Options(batch=2, capacity=32, threads=2))
    found = run_cached(session, ids, valid, 14)
    error = np.abs(found - expected)[valid.astype(bool)].max()
    assert error <= tolerances.LAYER * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("isa", isas())
def test_a_prefix_language_model(isa, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFORMER_ISA", isa)
    spec = PREFIXED["prefix-mask"]
    loaded, weights = saved(spec, tmp_path / "model")
    ids, prefix = random_ids(31, 2, 24), np.array([7, 11])
    expected = NumpyModel(spec, weights, np.float64)(ids, prefix_length=prefix)[0]["logits"]
    model = NativeModel(record(spec, 32), loaded.weights, 32)
    found = NativeDecoder(model, batch=2, cache="fp32").step(ids, keep=0, prefix=prefix)
    assert np.abs(found - expected).max() <= tolerances.LAYER * max(1.0, np.abs(expected).max())


def test_an_encoder_after_a_run_that_failed(tmp_path):
    """Rows of a failed run don't reach the next one; arrays of other shapes are refused."""
    loaded, _ = saved(ENCODERS["encoder-pooled-mlm"], tmp_path / "m")
    encoder = NativeEncoder(NativeModel(record(loaded.spec, 64), loaded.weights, 64), slots=True)
    ids = random_ids(31, 2, 9)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    first = encoder(inputs)
    long = np.full((40, 60), 500)
    with pytest.raises(InputError, match="out of range"):
        encoder({"input_ids": long, "attention_mask": np.ones_like(long), "token_type_ids": long * 0})
    again = encoder(inputs)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with pytest.raises(InputError, match="one shape"):
        encoder({**inputs, "attention_mask": np.ones((2, 3), np.int64)})


def test_what_a_decoder_and_an_encoder_refuse(tmp_path):
    """Arrays of other shapes than the library is told, before it reads them; a cache for a model that has none."""
    decoder = NativeDecoder(
        NativeModel(record(COMPONENTS["gqa"], 16), saved(COMPONENTS["gqa"], tmp_path)[0].weights, 16)
    )
    for ids, mask in ((np.zeros((2, 3), int), None), (np.zeros((1, 3), int), np.ones((1, 2)))):
        with pytest.raises(InputError, match=r"must be \[1, T\]"):
            decoder.step(ids, mask)
    runtime, _ = require("native")
    assert "no KV cache" in (runtime.refuses(ENCODERS["encoder"], Options(variant="kv-f16")) or "")


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("cache", ["fp32", "fp16"])
def test_long_prompts_and_many_threads(threads, cache):
    """Prompts longer than one step, attention cut into ranges of keys, more threads than cores."""
    loaded = load(STDLIB)
    ids = random_ids(loaded.spec.vocab, 1, 700)
    expected = NumpyModel(loaded.spec, loaded.weights)(ids, keep=3)[0]["logits"]
    model = NativeModel(record(loaded.spec, 720), loaded.weights, 720)
    decoder = NativeDecoder(model, threads=threads, cache=cache)
    limit = tolerances.REAL_WEIGHTS if cache == "fp32" else tolerances.FP16
    assert np.abs(decoder.step(ids, keep=3) - expected).max() <= limit
    decoder.reset()
    decoder.step(ids[:, :697], keep=1)
    found = np.concatenate([decoder.step(ids[:, i : i + 1]) for i in range(697, 700)], 1)
    assert np.abs(found - expected).max() <= limit


PINNED = """
import os, sys
import numpy as np
from edgeformer.backends.native.model import NativeDecoder, NativeModel
from edgeformer.backends.native.record import record
from edgeformer.checkpoint.loading import load
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
loaded = load(sys.argv[1])
model = NativeModel(record(loaded.spec, 64), loaded.weights, 64)
many, alone = (NativeDecoder(model, threads=n, cache="fp32") for n in (8, 1))
for token in range(40):
    a, b = (d.step(np.array([[token]])) for d in (many, alone))
    assert np.abs(a - b).max() < 1e-3
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't pin processes")
def test_eight_threads_on_one_core():
    """Threads that the system doesn't run hold nobody up."""
    done = subprocess.run(
        [sys.executable, "-c", PINNED, str(STDLIB)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("precision", ["q4", "q8", "bf16", "fp16"])
def test_the_bits_of_an_artefact(precision, isa, tmp_path, monkeypatch):
    """KL divergence from the same bits in float32, for int8 activations; other precisions are exact."""
    monkeypatch.setenv("EDGEFORMER_ISA", isa)
    export_onnx(load(STDLIB), tmp_path / "m", precision=precision)
    same = load(tmp_path / "m")
    ids = random_ids(same.spec.vocab, 1, 60)
    expected = NumpyModel(same.spec, same.weights)(ids)[0]["logits"]
    found, session = {}, None
    for variant in ("exact", ""):
        session = require("native")[0].open(tmp_path / "m", Options(capacity=64, threads=2, variant=variant))
        found[variant] = session.forward(ids, all_positions=True)
    assert np.abs(found["exact"] - expected).max() <= tolerances.REAL_WEIGHTS
    found = found[""]
    if precision in QUANTIZED:
        assert session.compute == "int8"
        assert 0 < divergence(expected, found) < 1e-3
    else:
        assert np.abs(found - expected).max() <= tolerances.REAL_WEIGHTS


def divergence(expected, found):
    """Mean KL divergence of two arrays of logits."""
    logp, logq = (
        x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (expected, found)
    )
    return float((np.exp(logp) * (logp - logq)).sum(-1).mean())


def test_mixed_precisions_of_maps_that_share_an_input(tmp_path):
    """q stays unquantized, k and v are q8: one product becomes three."""
    export_onnx(load(STDLIB), tmp_path / "m", precision="q8", keep=["*.attention.q.weight", "*.ffn.up.weight"])
    same = load(tmp_path / "m")
    ids = random_ids(same.spec.vocab, 1, 20)
    expected = NumpyModel(same.spec, same.weights)(ids)[0]["logits"]
    model = NativeModel(record(same.spec, 32), same.weights, 32)
    assert len(model.kinds) == 2
    assert 0 < divergence(expected, NativeDecoder(model).step(ids, keep=0)) < 1e-3
