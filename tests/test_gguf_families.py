"""Every architecture of llama.cpp that edgeformer writes: run by llama.cpp, read back, and quantized with the same codes. It all
belongs to the tests with other tools, so none of it runs without llama.cpp.

Oracle: transformers in float32 (for three families our numpy back end), over 160 positions, in one pass and in steps.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gguf_cases import EXACT_GELU, FAMILIES, FORMULAS, TABLE, VARIANTS
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
ALL = {name: (name, *case) for name, case in (FAMILIES | FORMULAS).items()} | VARIANTS
runs = pytest.mark.skipif(get("llama_cpp")[0].unavailable() is not None, reason="llama-cpp-python is not installed")


def made(case, folder):
    """The loaded model, and the logits of 160 ids."""
    model_type, _, config = ALL[case]
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
@pytest.mark.parametrize("case", ALL)
def test_llama_cpp_runs_it(case, tmp_path):
    loaded, ids, expected = made(case, tmp_path)
    done = export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert done.manifest["target"] == ALL[case][1]
    assert any("GELU's tanh approximation" in note for note in done.notes) == (case in EXACT_GELU)
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=160))
    whole = session.forward(ids[None], all_positions=True)[0]
    session.reset()
    steps = [session.forward(ids[None, :100])[0]]
    steps += [session.forward(ids[None, i : i + 1])[0] for i in range(100, 160)]
    scale = float(np.abs(expected).max())
    worst = max(float(np.abs(whole - expected).max()), float(np.abs(np.stack(steps) - expected[99:]).max()))
    record_errors("gguf", case, {ALL[case][1]: worst})
    assert worst <= (1e-3 * scale + 2e-3 if case in TABLE else 1e-4 + 1e-5 * scale)


@runs
@pytest.mark.parametrize("case", ALL)
def test_read_back(case, tmp_path):
    """The file is read as the same architecture with the same numbers; where GELU is exact, as what llama.cpp computes."""
    loaded, ids, expected = made(case, tmp_path)
    export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    again = load(tmp_path / "g" / "model.gguf")
    expected = expected if case in EXACT_GELU else numpy_logits(loaded, ids)
    worst = float(np.abs(numpy_logits(again, ids) - expected).max())
    assert worst <= (5e-3 if case in EXACT_GELU else 2e-5)
    if case not in EXACT_GELU:
        weights, found = loaded.require_weights(), again.require_weights()
        for name in weights:
            off = np.abs(np.asarray(weights[name]) - np.asarray(found[name])).max()
            assert off <= (2e-7 if "norm" in name else 0), name  # Gemma's norms are stored as 1 + w


@runs
@pytest.mark.parametrize("case", ALL)
def test_the_same_codes(case, tmp_path):
    loaded, _, _ = made(case, tmp_path)
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
    if case in ("gpt_neox", "phi3", "falcon"):  # fused matrices go on into other formats with their codes
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


_KEYS = {"attention.key_length": 48, "attention.value_length": 16}
LATENT = {"attention.layer_norm_rms_epsilon": 1e-6, **{f"{key}_mla": value for key, value in _KEYS.items()}}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("phi2", {"attention.head_count": 7}, "not a multiple of the 7 heads"),
        ("gptneox", {"attention.head_count": 1000}, "not a multiple of the 1000 heads"),
        ("minicpm", {"logit_scale": 0.0}, "must be positive"),
        ("stablelm", {"attention.head_count": 0}, "must be an integer from 1"),
        ("deepseek2", _KEYS, "inner norms have 1e-06"),
        ("deepseek2", LATENT | {"expert_group_count": 8}, "ranks groups by their two best experts"),
        ("deepseek2", LATENT | {"expert_gating_func": 2}, "weighs its experts as DeepSeek-V3 does"),
        ("deepseek2", LATENT | {"attention.key_length_mla": 8}, "can't have 16 rotated ones"),
        ("deepseek2", LATENT | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "scales scores twice"),
        (
            "llama",
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_beta_fast": 16.0},
            "computes 32.0 for this architecture",
        ),
        ("chatglm", {"attention.head_count": 7}, "not a multiple of the 7 heads"),
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


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"rope_factors_long.weight": np.ones(8, np.float32)}, "without rope_factors_short.weight"),
        (
            {f"rope_factors_{k}.weight": np.ones(5, np.float32) for k in ("long", "short")},
            r"\[5\]; 16 rotated channels need \[8\]",
        ),
        ({f"rope_factors_{k}.weight": np.zeros(8, np.float32) for k in ("long", "short")}, "factors must be positive"),
    ],
)
def test_factors_of_longrope(factors, message):
    metadata = {
        "block_count": 1, "context_length": 64, "embedding_length": 96, "feed_forward_length": 128, "attention.head_count": 6,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    draft = Draft("phi3", metadata, {"token_embd.weight": (97, 96)}, factors)
    with pytest.raises(EdgeformerError, match=message):
        discover.find("edgeformer.checkpoint.gguf_archs", "phi3").ARCHITECTURE.config(draft)


def test_latent_attention_of_older_files(tmp_path):
    """Files made before llama.cpp absorbed the maps: keys and values of all heads are one matrix, and head_count_kv counts."""
    import gguf

    loaded, ids, _ = made("deepseek_v2", tmp_path)
    export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    old = gguf.GGUFReader(tmp_path / "g" / "model.gguf")
    writer = gguf.GGUFWriter(tmp_path / "old.gguf", "deepseek2")
    for key, field in old.fields.items():
        if key.startswith("deepseek2.") and "_mla" not in key:
            value = field.contents()
            changed = {"deepseek2.attention.key_length": 48, "deepseek2.attention.value_length": 16}.get(key, value)
            writer.add_float32(key, changed) if isinstance(changed, float) else writer.add_uint32(key, changed)
    tensors = {t.name: np.array(t.data) for t in old.tensors}
    for name in [n for n in tensors if "attn_k_b" in n]:
        k, v = tensors.pop(name).swapaxes(1, 2), tensors.pop(name.replace("k_b", "v_b"))
        tensors[name.replace("k_b", "kv_b")] = np.concatenate([k, v], 1).reshape(-1, k.shape[-1])
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again = load(tmp_path / "old.gguf")
    assert np.array_equal(numpy_logits(again, ids), numpy_logits(loaded, ids))


@runs
def test_longrope_beyond_the_original_context(tmp_path):
    """llama.cpp would use the long factors from the first token on."""
    loaded, *_ = made("phi3@longrope", tmp_path)
    done = export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert any("-c 256" in note for note in done.notes)
    refused = require("llama_cpp")[0].refuses(loaded.spec, Options(capacity=300))
    assert refused is not None and "above 256" in refused
    assert require("llama_cpp")[0].refuses(loaded.spec, Options(capacity=200)) is None


@pytest.mark.parametrize(("layers", "scalar"), [(26, 16), (62, 24)])
def test_the_scale_of_gemma_3(layers, scalar):
    """llama.cpp scales the scores of 62 layers by the width over the heads, as Gemma 3 27B does."""
    metadata = {
        "block_count": layers, "context_length": 64, "embedding_length": 96, "feed_forward_length": 128,
        "attention.head_count": 4, "attention.key_length": 16, "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 32,
    }  # fmt: skip
    module = discover.find("edgeformer.checkpoint.gguf_archs", "gemma3")
    config = module.ARCHITECTURE.config(Draft("gemma3", metadata, {"token_embd.weight": (97, 96)}, {}))
    assert config["query_pre_attn_scalar"] == scalar and config["layer_types"].count("full_attention") == layers // 6


def test_factors_of_another_length():
    metadata = {
        "block_count": 1, "context_length": 64, "embedding_length": 96, "feed_forward_length": 128, "attention.head_count": 6,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    factors = {"rope_freqs.weight": np.ones(5, np.float32)}
    draft = Draft("llama", metadata, {"token_embd.weight": (97, 96)}, factors)
    with pytest.raises(EdgeformerError, match=r"rope_freqs.weight has shape \[5\]; 16 rotated channels need \[8\]"):
        discover.find("edgeformer.checkpoint.gguf_archs", "llama").ARCHITECTURE.config(draft)
