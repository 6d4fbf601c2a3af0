"""`portable` in other readers of ONNX (OpenVINO, onnx's reference evaluator), `cpu` folders in Optimum and GenAI."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from encoder_cases import ENCODER_DECODERS, pair_settings
from family_cases import TINY
from support import ROOT, STDLIB, hf_logits, load_tiny, random_ids

from edgeformer import load
from edgeformer.api import export, verify
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.verification.reference import greedy

OPTIMUM = os.environ.get("EDGEFORMER_OPTIMUM_PYTHON")
LENGTH, PREFILL = 48, 30


def feed(inputs: dict[str, tuple], ids: np.ndarray, past: int, cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given = {
        "input_ids": ids,
        "attention_mask": np.ones((1, past + ids.shape[1]), np.int64),
        "position_ids": np.arange(past, past + ids.shape[1])[None],
        "num_logits_to_keep": np.zeros(1, np.int64),
        **cache,
    }
    return {name: value for name, value in given.items() if name in inputs}


def run_cached(inputs: dict[str, tuple], call, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V]: a prefill and single steps, the cache handed on."""
    cache = {
        n: np.zeros((1, shape[1], 0, shape[3]), dtype) for n, (shape, dtype) in inputs.items() if n.startswith("past")
    }
    rows = []
    for start, end in [(0, PREFILL), *((i, i + 1) for i in range(PREFILL, ids.shape[1]))]:
        made = call(feed(inputs, ids[:, start:end], start, cache))
        cache = {n: made[n.replace("past_key_values", "present")] for n in cache}
        rows.append(made["logits"][0])
    return np.concatenate(rows)


def described(folder: Path) -> dict[str, tuple]:
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    types = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
    found = {}
    for value in graph.input:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        found[value.name] = (shape, types.get(kind.elem_type, np.int64))
    return found


def own(folder: Path, ids: np.ndarray) -> np.ndarray:
    """The same bits in numpy's float32."""
    return require("numpy")[0].open(load(folder), Options()).forward(ids, all_positions=True)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "q4", "q8", "q4f16"])
def test_reference_evaluator(tmp_path, precision):
    """onnx's own evaluator: the standard's word on what the file means."""
    from onnx.reference import ReferenceEvaluator

    export(load(STDLIB), tmp_path / "m", target="portable", precision=precision)
    model = onnx.load(str(tmp_path / "m" / "model.onnx"), load_external_data=False)
    assert {o.domain for o in model.opset_import} == {""}
    assert not model.functions
    ids = random_ids(4096, 1, LENGTH)
    evaluator = ReferenceEvaluator(str(tmp_path / "m" / "model.onnx"))
    outputs = [o.name for o in model.graph.output]

    def call(given):
        return dict(zip(outputs, evaluator.run(None, given), strict=True))

    found, expected = run_cached(described(tmp_path / "m"), call, ids), own(tmp_path / "m", ids)
    limit = 2e-2 + 1e-2 * np.abs(expected).max() if precision.endswith("f16") or precision == "fp16" else 1e-3
    assert np.abs(found - expected).max() <= limit


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "q4", "q8"])
def test_openvino(tmp_path, precision):
    """Computed in float32, without the activations that OpenVINO would round by default."""
    openvino = pytest.importorskip("openvino")
    export(load(STDLIB), tmp_path / "m", target="portable", precision=precision)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(str(tmp_path / "m" / "model.onnx"), "CPU", settings)
    names = {name: o for o in compiled.outputs for name in o.get_names()}
    ids = random_ids(4096, 1, LENGTH)
    inputs = {n: v for n, v in described(tmp_path / "m").items() if n in {i.any_name for i in compiled.inputs}}

    def call(given):
        result = compiled(given)
        return {name: np.array(result[output]) for name, output in names.items()}

    expected = own(tmp_path / "m", ids)
    limit = 2e-2 + 1e-2 * np.abs(expected).max() if precision == "fp16" else 1e-3  # keys and values are fp16 then
    assert np.abs(run_cached(inputs, call, ids) - expected).max() <= limit


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_openvino_runs_other_families(tmp_path, family):
    """The oracle is transformers."""
    openvino = pytest.importorskip("openvino")
    gpt2 = {"n_embd": 48, "n_head": 4, "n_layer": 2, "vocab_size": 97, "n_positions": 128, "initializer_range": 0.2}
    loaded, model = load_tiny(tmp_path / "hf", family, **(TINY if family == "llama" else gpt2))
    export(loaded, tmp_path / "m", target="portable")
    compiled = openvino.Core().compile_model(
        str(tmp_path / "m" / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    ids = random_ids(97, 1, LENGTH)
    inputs = {n: v for n, v in described(tmp_path / "m").items() if n in {i.any_name for i in compiled.inputs}}

    def call(given):
        result = compiled(given)
        return {name: np.array(result[o]) for o in compiled.outputs for name in o.get_names()}

    assert np.abs(run_cached(inputs, call, ids) - hf_logits(model, ids[0])).max() <= 1e-4


@pytest.mark.skipif(OPTIMUM is None, reason="EDGEFORMER_OPTIMUM_PYTHON names no Python that has optimum-onnx")
@pytest.mark.parametrize("precision", ["fp32", "q4", "q8"])
def test_optimum(tmp_path, precision):
    """Optimum's ORTModelForCausalLM generates the same bits' greedy tokens. It needs a transformers older than ours."""
    export(load(STDLIB), tmp_path / "m", precision=precision)
    ids = read_tokenizer(STDLIB).encode("def main(argv=None):\n    parser = ")
    command = [str(OPTIMUM), str(ROOT / "tests" / "optimum_generate.py"), str(tmp_path / "m"), json.dumps(ids), "24"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    session = require("numpy")[0].open(load(tmp_path / "m"), Options())
    assert json.loads(run.stdout.splitlines()[-1]) == greedy(session, np.array([ids]), 24)[0][0].tolist()


@pytest.mark.skipif(OPTIMUM is None, reason="EDGEFORMER_OPTIMUM_PYTHON names no Python that has optimum-onnx")
@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_optimum_reads_and_writes(tmp_path, family):
    """ORTModelForSeq2SeqLM on an exported encoder–decoder model. Oracle: transformers' greedy tokens."""
    even = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, d_model=64)
    if family == "t5":
        even = dict(d_model=64, d_kv=16, num_heads=4, num_layers=2, num_decoder_layers=2)
    # Optimum makes empty caches of d_model / heads, of the encoder's heads
    config = {"decoder_start_token_id": 0} | pair_settings(family, ENCODER_DECODERS[family]["plain"] | even)
    loaded, model = load_tiny(tmp_path / "hf", family, auto="AutoModelForSeq2SeqLM", **config)
    export(loaded, tmp_path / "m")
    ids = random_ids(80, 30) + 10
    script = str(ROOT / "tests" / "optimum_generate.py")
    command = [str(OPTIMUM), script, str(tmp_path / "m"), json.dumps(ids.tolist()), "12", "ORTModelForSeq2SeqLM"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    asked = dict(max_new_tokens=12, do_sample=False, num_beams=1, eos_token_id=None)
    theirs = model.generate(torch.from_numpy(ids[None]), **asked)[0, 1:].tolist()
    assert json.loads(run.stdout.splitlines()[-1]) == theirs


@pytest.mark.parametrize("precision", ["q4", "q8"])
def test_genai(tmp_path, precision):
    """ONNX Runtime GenAI's own loop over a quantized folder."""
    pytest.importorskip("onnxruntime_genai")
    export(load(STDLIB), tmp_path / "m", precision=precision)
    verdict = verify(tmp_path / "m", STDLIB, runtime="ort_genai", length=48, generate=32)
    assert verdict.verdict == "pass"


def test_genai_with_a_growing_cache(tmp_path):
    """Targets whose attention joins past and new itself can't share one buffer, and say so."""
    pytest.importorskip("onnxruntime_genai")
    export(load(STDLIB), tmp_path / "m", target="portable")
    assert verify(tmp_path / "m", STDLIB, runtime="ort_genai", length=48, generate=32).verdict == "pass"


def test_coreml_stays_within_the_published_list(tmp_path):
    """All but a handful of nodes, by the list; the graph itself gives transformers' numbers on the CPU."""
    loaded, model = load_tiny(tmp_path / "hf", "llama", **TINY)
    made = export(loaded, tmp_path / "m", target="coreml")
    estimate = made.manifest["estimate"]
    assert estimate["what"].startswith("static")
    assert estimate["claimed"] >= 0.95 * estimate["nodes"]
    assert set(estimate["left"]) <= {"CumSum", "Neg", "Slice"}
    session = require("onnxruntime")[0].open(tmp_path / "m", Options())
    ids = random_ids(97, 100)
    assert np.abs(session.forward(ids[None], all_positions=True)[0] - hf_logits(model, ids)).max() <= 1e-4


def test_targets_refuse_what_they_cannot_hold(tmp_path):
    from edgeformer.errors import ExportError

    with pytest.raises(ExportError, match="the target coreml supports fp32, fp16, bf16, not q4"):
        export(load(STDLIB), tmp_path / "m", target="coreml", precision="q4")
    made = export(load(STDLIB), tmp_path / "c", target="cuda")
    assert any("GroupQueryAttention supports FLOAT16, not FLOAT" in note for note in made.notes)
    made = export(load(STDLIB), tmp_path / "d", target="cuda", precision="q4f16")
    assert not made.notes
