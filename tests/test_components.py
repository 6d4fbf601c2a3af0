"""T2: every component on every back end, cached and left-padded; and the table of their errors.

Oracle: the numpy back end in float64, whose maths `test_formulas.py` and `test_layers.py` hold against plain formulas.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerances
from component_cases import COMPONENTS, ENCODERS, PREFIXED
from support import random_ids, record_errors, run_cached, saved, sessions

from edgeformer.backends.numpy import NumpyModel
from edgeformer.exporters.onnx.exporter import export_onnx

torch = pytest.importorskip("torch")


def weights_of(spec, folder):
    loaded, weights = saved(spec, folder)
    return loaded, weights


@pytest.mark.parametrize("case", COMPONENTS)
def test_component(case, tmp_path):
    """Two blocks of it: a prefill of 14 tokens and 10 single ones, the second row with padding on the left."""
    spec = COMPONENTS[case]
    loaded, weights = weights_of(spec, tmp_path / "model")
    ids = random_ids(31, 2, 24)
    valid = np.ones_like(ids)
    valid[1, :5] = 0
    real = valid.astype(bool)
    expected = NumpyModel(spec, weights, np.float64)(ids, valid)[0]["logits"]
    errors = {}
    for name, session in sessions(loaded, tmp_path, batch=2, capacity=32).items():
        errors[name] = float(np.abs(run_cached(session, ids, valid, 14) - expected)[real].max())
    record_errors("components", case, errors)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= tolerances.LAYER * max(1.0, np.abs(expected).max()), errors


@pytest.mark.parametrize("case", ENCODERS)
def test_encoder_component(case, tmp_path):
    spec = ENCODERS[case]
    loaded, weights = weights_of(spec, tmp_path / "model")
    ids, mask = random_ids(31, 2, 24), np.ones((2, 24), np.int64)
    mask[1, 19:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    expected = NumpyModel(spec, weights, np.float64)(ids, mask)[0]["last_hidden_state"]
    errors = {}
    for name, session in sessions(loaded, tmp_path).items():
        errors[name] = float(np.abs(session.encode(inputs)["last_hidden_state"] - expected)[mask.astype(bool)].max())
    record_errors("components", case, errors)
    assert max(errors.values()) <= tolerances.LAYER * max(1.0, np.abs(expected).max()), errors


@pytest.mark.parametrize("case", PREFIXED)
def test_prefix_component(case, tmp_path):
    """A prefix language model: prefixes of 7 and 11 tokens, in one pass."""
    import mlx.core as mx
    import onnxruntime

    import edgeformer

    spec = PREFIXED[case]
    loaded, weights = weights_of(spec, tmp_path / "model")
    ids, prefix = random_ids(31, 2, 24), np.array([7, 11])
    expected = NumpyModel(spec, weights, np.float64)(ids, prefix_length=prefix)[0]["logits"]
    found: dict[str, Any] = {"numpy": NumpyModel(spec, weights)(ids, prefix_length=prefix)[0]["logits"]}
    with torch.no_grad():
        model = edgeformer.build_torch(loaded)
        found["torch"] = model(torch.from_numpy(ids), prefix_length=torch.from_numpy(prefix)).numpy()
    found["mlx"] = np.array(edgeformer.build_mlx(loaded)(mx.array(ids), prefix_length=mx.array(prefix)))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "prefix_length": prefix}
    for target in ("cpu", "portable"):
        export_onnx(loaded, tmp_path / target, target=target)
        session = onnxruntime.InferenceSession(str(tmp_path / target / "model.onnx"))
        past = {
            i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32)
            for i in session.get_inputs()
            if i.name.startswith("past")
        }
        names = {i.name for i in session.get_inputs()}
        more = {"position_ids": np.arange(24)[None].repeat(2, 0)} if "position_ids" in names else {}
        keep = {"num_logits_to_keep": np.zeros(1, np.int64)}
        found[f"onnx-{target}"] = session.run(["logits"], feed | past | more | keep)[0]
    errors = {name: float(np.abs(logits - expected).max()) for name, logits in found.items()}
    record_errors("components", case, errors)
    assert max(errors.values()) <= tolerances.LAYER * max(1.0, np.abs(expected).max()), errors


def test_what_a_prefix_shows():
    """The first prefix tokens see each other; what comes after them is causal."""
    spec = PREFIXED["prefix-mask"]
    rng = np.random.default_rng(0)
    from edgeformer.spec import tensors

    weights = {n: rng.standard_normal(s) * 0.3 for n, s in tensors(spec).items()}
    ids, prefix = random_ids(31, 1, 12), np.array([5])
    model = NumpyModel(spec, weights, np.float64)
    logits = model(ids, prefix_length=prefix)[0]["logits"]
    for changed in range(12):
        other = ids.copy()
        other[0, changed] = (other[0, changed] + 1) % 31
        moved = np.abs(model(other, prefix_length=prefix)[0]["logits"] - logits)[0].max(-1) > 1e-9
        assert moved.tolist() == [i >= changed or (changed < 5 and i < 5) for i in range(12)]


def test_one_block_as_often_as_order_says(tmp_path):
    spec = ENCODERS["shared-blocks"]
    _, weights = weights_of(spec, tmp_path / "model")
    twice = replace(spec, blocks=(spec.blocks[0],) * 3, order=None)
    copies = {name.replace("layers.0.", f"layers.{i}."): w for i in range(3) for name, w in weights.items()}
    ids = random_ids(31, 1, 9)
    one, other = (
        NumpyModel(s, w, np.float64)(ids)[0]["last_hidden_state"] for s, w in ((spec, weights), (twice, copies))
    )
    assert np.array_equal(one, other)


@pytest.mark.parametrize("to", ["gguf", "mlx", "hf"])
def test_other_tools_are_not_given_a_mask_that_they_cannot_hold(to, tmp_path):
    import edgeformer
    from edgeformer.errors import ExportError

    loaded, _ = weights_of(PREFIXED["prefix-mask"], tmp_path / "model")
    more = {"gguf": {"no_tokenizer": True}, "mlx": {"stock": True}, "hf": {}}[to]
    with pytest.raises(ExportError):
        edgeformer.export(loaded, tmp_path / "out", to=to, **more)


@pytest.mark.parametrize("case", ["moe", "alibi", "sinks", "t5-bias", "qk-norm-whole", "shaw"])
def test_half_precision(case, tmp_path):
    """fp16 weights and arithmetic, against the same weights in float64."""
    from edgeformer.inference.lookup import require
    from edgeformer.inference.runtime import Options

    spec = COMPONENTS[case]
    loaded, weights = weights_of(spec, tmp_path / "model")
    rounded = {name: w.astype(np.float16).astype(np.float64) for name, w in weights.items()}
    ids = random_ids(31, 1, 24)
    expected = NumpyModel(spec, rounded, np.float64)(ids)[0]["logits"]
    export_onnx(loaded, tmp_path / "onnx", precision="fp16")
    opened = {
        "onnx": require("onnxruntime")[0].open(tmp_path / "onnx", Options()),
        "mlx": require("mlx")[0].open(loaded, Options(precision="fp16")),
    }
    for name, session in opened.items():
        worst = np.abs(run_cached(session, ids, None, 14) - expected).max()
        assert worst <= tolerances.FP16 * np.abs(expected).max(), f"{name}: {worst:.1e}"


def test_borrowed_keys_have_to_be_there():
    from edgeformer.errors import SpecError
    from edgeformer.layers.alibi import Alibi

    spec = COMPONENTS["cross-layer-kv"]
    sharer, borrower = spec.blocks
    other = replace(borrower, attention=replace(borrower.attention, kv_heads=4))
    for blocks, words in (
        ((borrower, sharer), "no earlier block shares"),
        ((sharer, sharer, borrower), "a name already taken by another layer"),
        ((sharer, other), "'a', which has 2 heads"),
        ((sharer, replace(borrower, attention=replace(borrower.attention, source="b"))), "'b'"),
    ):
        with pytest.raises(SpecError, match=words):
            replace(spec, blocks=blocks)
    with pytest.raises(SpecError, match="position has 8 heads"):
        replace(COMPONENTS["alibi"].blocks[0].attention, position=Alibi(heads=8))


@pytest.mark.parametrize(("buckets", "bidirectional", "least"), ((2, True, 4), (1, False, 2)))
def test_buckets_have_to_hold_single_distances(buckets, bidirectional, least):
    from edgeformer.errors import SpecError
    from edgeformer.layers.relative_bias import RelativeBias

    with pytest.raises(SpecError, match=f"at least {least}, got {buckets}"):
        RelativeBias(heads=2, buckets=buckets, bidirectional=bidirectional)
    assert len(RelativeBias(heads=2, buckets=least, bidirectional=bidirectional).lookup()) == 257


def test_a_prefix_has_to_be_given():
    from edgeformer.errors import InputError
    from edgeformer.spec import tensors

    spec = PREFIXED["rope-2d"]
    weights = {n: np.ones(s) for n, s in tensors(spec).items()}
    with pytest.raises(InputError, match="prefix_length"):
        NumpyModel(spec, weights)(random_ids(31, 1, 4))
