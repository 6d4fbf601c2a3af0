"""Every architecture of llama.cpp that edgeformer writes: run by llama.cpp, read back, and quantized with the same codes. It all
belongs to the tests with other tools, so none of it runs without llama.cpp.

Oracle: transformers in float32 (for three families our numpy back end), over 160 positions, in one pass and in steps.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gguf_cases import EXACT_GELU, FAMILIES, FORMULAS, TABLE
from support import hf_logits, load_tiny, random_ids, record_errors, saved, small_spec

from edgeformer import discover, load
from edgeformer.api import export
from edgeformer.errors import EdgeformerError, ExportError
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.quantization.run import quantize
from edgeformer.spec.serialization import digest
from edgeformer.weights.formats import QuantizedTensor
from edgeformer.weights.gguf_file import Draft

pytest.importorskip("gguf")
pytest.importorskip("transformers")
ALL = FAMILIES | FORMULAS
runs = pytest.mark.skipif(get("llama_cpp")[0].unavailable() is not None, reason="llama-cpp-python is not installed")


def made(model_type, folder):
    """The loaded model, and the logits of 160 ids."""
    _, config = ALL[model_type]
    ids = random_ids(97, 160)
    if model_type in FAMILIES:
        loaded, hf = load_tiny(folder / "hf", model_type, **config)
        return loaded, ids, hf_logits(hf, ids)
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    known = load(folder / "m")
    loaded = replace(saved(known.spec, folder / "s", scale=0.1)[0], config=known.config)
    return loaded, ids, numpy_logits(loaded, ids)


def numpy_logits(model, ids):
    return require("numpy")[0].open(model, Options()).forward(ids[None], all_positions=True)[0]


@runs
@pytest.mark.parametrize("model_type", ALL)
def test_llama_cpp_runs_it(model_type, tmp_path):
    loaded, ids, expected = made(model_type, tmp_path)
    done = export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert done.manifest["target"] == ALL[model_type][0]
    assert any("GELU's tanh approximation" in note for note in done.notes) == (model_type in EXACT_GELU)
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=160))
    whole = session.forward(ids[None], all_positions=True)[0]
    session.reset()
    steps = [session.forward(ids[None, :100])[0]]
    steps += [session.forward(ids[None, i : i + 1])[0] for i in range(100, 160)]
    scale = float(np.abs(expected).max())
    worst = max(float(np.abs(whole - expected).max()), float(np.abs(np.stack(steps) - expected[99:]).max()))
    record_errors("gguf", model_type, {ALL[model_type][0]: worst})
    assert worst <= (1e-3 * scale + 2e-3 if model_type in TABLE else 1e-4 + 1e-5 * scale)


@runs
@pytest.mark.parametrize("model_type", ALL)
def test_read_back(model_type, tmp_path):
    """The file is read as the same architecture with the same numbers; where GELU is exact, as what llama.cpp computes."""
    loaded, ids, expected = made(model_type, tmp_path)
    export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    again = load(tmp_path / "g" / "model.gguf")
    worst = float(np.abs(numpy_logits(again, ids) - expected).max())
    assert worst <= (5e-3 if model_type in EXACT_GELU else 1e-4)
    if model_type not in EXACT_GELU:
        weights, found = loaded.require_weights(), again.require_weights()
        for name in weights:
            off = np.abs(np.asarray(weights[name]) - np.asarray(found[name])).max()
            assert off <= (2e-7 if "norm" in name else 0), name  # Gemma's norms are stored as 1 + w


@runs
@pytest.mark.parametrize("model_type", ALL)
def test_the_same_codes(model_type, tmp_path):
    loaded, _, _ = made(model_type, tmp_path)
    source = tmp_path / "source"
    export(loaded, source, to="hf", precision="fp32")
    quantize(load(source), tmp_path / "q", format="q4")
    export(load(tmp_path / "q"), tmp_path / "g", to="gguf", no_tokenizer=True)
    ours, again = load(tmp_path / "q").require_weights(), load(tmp_path / "g" / "model.gguf")
    found, count = again.require_weights(), 0
    for name, tensor in ours.sources.items():
        there = found.sources[name].stored
        if isinstance(tensor.stored, QuantizedTensor) and isinstance(there, QuantizedTensor):
            for a, b in zip(tensor.stored.quantized(), there.quantized(), strict=True):
                assert np.array_equal(a, b), name
            count += 1
        elif isinstance(tensor.stored, QuantizedTensor):  # MLA's maps per head, which the file holds transposed
            assert "_up" in name and np.array_equal(ours[name], found[name]), name
    assert count >= 6
    if model_type in ("gpt_neox", "phi3", "falcon"):  # fused matrices go on into other formats with their codes
        export(again, tmp_path / "onnx")
        onward = load(tmp_path / "onnx").require_weights()
        assert all(np.array_equal(onward[name], found[name]) for name in found)


def test_what_no_architecture_computes_is_refused(tmp_path):
    loaded, _ = saved(small_spec(softcap=5.0), tmp_path / "m")
    with pytest.raises(
        ExportError, match=r"the nearest is llama, which differs in blocks\.\*\.attention\.softcap = 5\.0"
    ):
        export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    normalised, _ = load_tiny(tmp_path / "hf", "cohere", **FAMILIES["cohere"][1] | dict(use_qk_norm=True))
    windowed, _ = load_tiny(tmp_path / "phi3", "phi3", **FAMILIES["phi3"][1] | dict(sliding_window=50))
    with pytest.raises(ExportError, match=r"phi3, which differs in .*window = 50 \(none there\)"):  # llama.cpp has none
        export(windowed, tmp_path / "g", to="gguf", no_tokenizer=True)
    with pytest.raises(ExportError, match=r"command-r, which differs in .*qk_norm"):  # llama.cpp: from 64 layers on
        export(normalised, tmp_path / "g", to="gguf", no_tokenizer=True)


def test_an_architecture_that_fits_several(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m")
    first = export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert first.manifest["target"] == "llama"
    assert digest(load(tmp_path / "g" / "model.gguf").spec) == digest(loaded.spec)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("phi2", {"attention.head_count": 7}, "not a multiple of the 7 heads"),
        ("gptneox", {"attention.head_count": 1000}, "not a multiple of the 1000 heads"),
        ("minicpm", {"logit_scale": 0.0}, "must be positive"),
        ("stablelm", {"attention.head_count": 0}, "must be an integer from 1"),
    ],
)
def test_sizes_that_contradict_each_other(architecture, changes, message):
    """One error, whatever a file's metadata says."""
    module = discover.find("edgeformer.checkpoint.gguf_archs", architecture)
    metadata = {
        "block_count": 2, "context_length": 64, "embedding_length": 96, "feed_forward_length": 128, "vocab_size": 97,
        "attention.head_count": 6, "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": 16, "embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": 1.0,
    }  # fmt: skip
    draft = Draft(architecture, metadata | changes, {"token_embd.weight": (97, 96)}, {})
    with pytest.raises(EdgeformerError, match=message):
        module.ARCHITECTURE.config(draft)


def test_factors_of_another_length():
    metadata = {
        "block_count": 1, "context_length": 64, "embedding_length": 96, "feed_forward_length": 128, "attention.head_count": 6,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    factors = {"rope_freqs.weight": np.ones(5, np.float32)}
    draft = Draft("llama", metadata, {"token_embd.weight": (97, 96)}, factors)
    with pytest.raises(EdgeformerError, match=r"rope_freqs.weight has shape \[5\]; 16 rotated channels need \[8\]"):
        discover.find("edgeformer.checkpoint.gguf_archs", "llama").ARCHITECTURE.config(draft)
