"""How specs are lowered to ONNX: fast bodies and their fallbacks, padding, chunks, precisions."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from family_cases import TINY
from support import STDLIB, load_tiny, open_session, random_ids, run_cached, saved, small_spec

from edgeformer.backends.numpy import NumpyModel
from edgeformer.checkpoint.loading import load
from edgeformer.errors import InputError
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope
from edgeformer.verification import parity

# ------------------------------------------------------------------------------------------------------- fallbacks


@pytest.mark.parametrize(
    ("attention", "words", "cache"),
    [
        (dict(head_dim=20, position=Rope(dim=20)), "a head_dim divisible by 8, and this one is 20", "growing"),
        (
            dict(head_dim=24, position=Rope(dim=24)),
            "RoPE needs multiples of 16 channels, and this layer has 24",
            "shared",
        ),
        (dict(head_dim=32, position=Rope(dim=8)), "this layer has 8 of head_dim 32", "shared"),
        ({}, None, "shared"),
    ],
)
def test_a_shape_that_a_fast_body_cannot_take_falls_back_and_says_so(attention, words, cache, tmp_path):
    loaded, weights = saved(small_spec(**attention), tmp_path / "m")
    made = export_onnx(loaded, tmp_path / "onnx", eos=(2,))
    notes = made.notes
    if words is None:
        assert notes == []
    else:
        assert len(notes) == 1 and words in notes[0] and "(2 layers)" in notes[0]
    assert made.manifest["cache"] == cache
    ids = random_ids(31, 1, 40)
    expected = NumpyModel(loaded.spec, weights, np.float64)(ids)[0]["logits"]
    logits = run_cached(open_session(tmp_path / "onnx"), ids, None, 20)
    assert np.abs(logits - expected).max() <= tolerances.LAYER


def test_function_bodies_equal_the_default_definitions(tmp_path):
    """The cpu target's faster bodies against the portable target's default ones, on the same inputs."""
    loaded, _ = saved(small_spec(softcap=5.0), tmp_path / "m")
    ids, results = random_ids(31, 1, 30), []
    for target in ("cpu", "portable"):
        export_onnx(loaded, tmp_path / target, target=target)
        results.append(run_cached(open_session(tmp_path / target), ids, None, 11))
    assert np.abs(results[0] - results[1]).max() <= tolerances.LAYER


def test_portable_uses_plain_operators_only(tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator

    loaded, weights = saved(small_spec(), tmp_path / "m")
    export_onnx(loaded, tmp_path / "onnx", target="portable", inline=True)
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert {n.domain for n in model.graph.node} == {""} and not model.functions
    ids = random_ids(31, 1, 6)
    empty = np.zeros((1, 2, 0, 16), np.float32)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(6)[None]}
    feed |= {f"past_key_values.{i}.{n}": empty for i in range(2) for n in ("key", "value")}
    feed["num_logits_to_keep"] = np.zeros(1, np.int64)
    logits = ReferenceEvaluator(model).run(["logits"], feed)[0]  # ONNX's own interpreter
    expected = NumpyModel(loaded.spec, weights, np.float64)(ids)[0]["logits"]
    assert np.abs(logits - expected).max() <= tolerances.LAYER


def test_one_shared_buffer_with_garbage_beyond_the_length(tmp_path):
    loaded, weights = saved(small_spec(), tmp_path / "m")
    export_onnx(loaded, tmp_path / "onnx")
    session = open_session(tmp_path / "onnx", capacity=48)
    ids = random_ids(31, 1, 30)
    run_cached(session, random_ids(31, 1, 48, seed=5), None, 40)  # fills the buffers with another sequence
    expected = NumpyModel(loaded.spec, weights, np.float64)(ids)[0]["logits"]
    assert np.abs(run_cached(session, ids, None, 7) - expected).max() <= tolerances.LAYER


def test_chunked_prefill(tmp_path):
    """A prompt in pieces, alone and in a batch."""
    loaded, weights = saved(small_spec(), tmp_path / "m")
    export_onnx(loaded, tmp_path / "onnx")
    for batch in (1, 3):
        ids = random_ids(31, batch, 30)
        session = open_session(tmp_path / "onnx", batch=batch)
        parts = [session.forward(ids[:, a:b], all_positions=True) for a, b in ((0, 8), (8, 20), (20, 21), (21, 30))]
        expected = NumpyModel(loaded.spec, weights, np.float64)(ids)[0]["logits"]
        assert np.abs(np.concatenate(parts, 1) - expected).max() <= tolerances.LAYER


def test_a_hole_in_the_first_prompt_is_refused(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m")
    export_onnx(loaded, tmp_path / "onnx")
    valid = np.ones((1, 9), np.int64)
    valid[0, 3:5] = 0
    with pytest.raises(InputError, match="padding between real tokens"):
        open_session(tmp_path / "onnx").forward(random_ids(31, 1, 9), valid)


# ------------------------------------------------------------------------------------------- conversions and padding


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_float32_checkpoint_is_converted(family, precision, tmp_path):
    """Oracle: numpy on weights rounded to the precision."""
    config = {"gpt2": dict(n_embd=48, n_head=6, n_layer=2, vocab_size=97, n_positions=64), "llama": TINY, "bert": {}}
    config["bert"] = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
    loaded, _ = load_tiny(tmp_path / "hf", family, **config[family])
    export_onnx(loaded, tmp_path / "onnx", precision=precision)
    verdict = parity.verify(tmp_path / "onnx", loaded, length=24, generate=4)
    assert verdict.verdict == "pass", verdict


def test_fp16_errs_no_more_than_transformers_in_fp16(tmp_path):
    """The oracle for the fp16 limit: transformers' own half precision on the same weights, both against float32."""
    torch = pytest.importorskip("torch")
    loaded, hf = load_tiny(tmp_path / "hf", "llama", **TINY)
    export_onnx(loaded, tmp_path / "onnx", precision="fp16")
    ids = random_ids(97, 1, 24)
    rounded = {n: w.astype(np.float16) for n, w in loaded.weights.items()}
    expected = NumpyModel(loaded.spec, rounded, np.float64)(ids)[0]["logits"]
    with torch.no_grad():
        theirs = np.abs(hf.half()(torch.from_numpy(ids)).logits.float().numpy() - expected).max()
    ours = np.abs(run_cached(open_session(tmp_path / "onnx"), ids, None, 12) - expected).max()
    assert ours <= theirs


def test_the_last_real_token_of_a_right_padded_row(tmp_path):
    loaded, weights = saved(small_spec(), tmp_path / "m")
    export_onnx(loaded, tmp_path / "onnx")
    ids = random_ids(31, 2, 9)
    valid = np.ones_like(ids)
    valid[1, 5:] = 0
    expected = [
        NumpyModel(loaded.spec, weights, np.float64)(ids[r : r + 1, :n])[0]["logits"][0, -1]
        for r, n in ((0, 9), (1, 5))
    ]
    for name in ("onnxruntime", "numpy", "torch"):
        runtime = require(name)[0]
        session = runtime.open(tmp_path / "onnx" if runtime.opens == "onnx" else loaded, Options(batch=2))
        assert np.abs(session.forward(ids, valid) - expected).max() <= tolerances.LAYER, name
    before = session.length
    session.forward(ids[:, :1], np.array([[1], [0]]))  # a finished row of a batch that goes on
    assert session.length == before + 1


def test_position_ids_are_not_an_input_where_the_kernel_counts(tmp_path):
    import onnx

    for target, there in (("cpu", False), ("portable", True)):
        export_onnx(load(STDLIB), tmp_path / target, target=target)
        model = onnx.load(tmp_path / target / "model.onnx", load_external_data=False)
        assert ("position_ids" in {i.name for i in model.graph.input}) is there


def test_packing_goes_by_what_attention_is_given(tmp_path, monkeypatch):
    """A layer that asks for its maps in another order than it attends with."""
    spec = small_spec(kv_heads=4)
    original = GQA.apply

    def shuffled(self, ops, p, x, step):
        linears = ops.linears

        def reordered(x, q, k, v):
            k, q, v = linears(x, k, q, v)
            return q, k, v

        monkeypatch.setattr(ops, "linears", reordered, raising=False)
        out = original(self, ops, p, x, step)
        monkeypatch.setattr(ops, "linears", linears, raising=False)
        return out

    loaded, weights = saved(spec, tmp_path / "m")
    ids = random_ids(31, 1, 12)
    expected = NumpyModel(spec, weights, np.float64)(ids)[0]["logits"]
    monkeypatch.setattr(GQA, "apply", shuffled)
    export_onnx(loaded, tmp_path / "onnx")
    assert np.abs(run_cached(open_session(tmp_path / "onnx"), ids, None, 6) - expected).max() <= tolerances.LAYER
