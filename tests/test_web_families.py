"""Every decoder family that transformers.js knows, in transformers.js under Node. Oracle: transformers' greedy tokens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODER_DECODERS, pair_settings
from family_cases import CASES, DECODERS, settings
from support import ROOT, load_tiny, random_ids, record_errors, saved, small_spec

from edgeformer import load
from edgeformer.api import export
from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.targets.web import MODEL_TYPES
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
WEB = ROOT / "tests" / "web"
node = pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules" / "@huggingface").exists(),
    reason="run tests/web/install (Node, npm)",
)
COUNT = 10


@node
def test_families(tmp_path):
    requests, expected = [], {}
    for model_type, case in DECODERS:
        if model_type not in MODEL_TYPES:
            continue
        folder = f"{model_type}-{case}"
        loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, CASES[model_type][case]))
        export(loaded, tmp_path / "web" / folder, target="web")
        ids = torch.from_numpy(random_ids(97, 1, 40))
        asked = dict(max_new_tokens=COUNT, do_sample=False, pad_token_id=0, eos_token_id=None)
        made = hf.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        expected[folder] = made[0, 40:].tolist()
        requests.append({"folder": folder, "ids": ids[0].tolist(), "count": COUNT})
        shutil.rmtree(tmp_path / "hf")
    same_tokens(tmp_path, requests, expected)
    for folder in expected:
        record_errors("web", folder.replace("-", "@", 1), {"tokens": 0.0})


def same_tokens(folder, requests, expected):
    """Whether transformers.js gives these tokens for the folders below `web`."""
    (folder / "requests.json").write_text(json.dumps(requests))
    command = ["node", "families.mjs", str(folder / "web"), str(folder / "requests.json")]
    run = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    answers = {a["folder"]: a for a in map(json.loads, run.stdout.splitlines())}
    wrong = {f: answers.get(f) for f in expected if (answers.get(f) or {}).get("tokens") != expected[f]}
    assert not wrong, wrong


@node
def test_encoder_decoder_families(tmp_path):
    """Every encoder–decoder family: a reader, and a decoder that makes keys and values of its output once."""
    requests, expected = [], {}
    for model_type, case in [(kind, case) for kind, cases in ENCODER_DECODERS.items() for case in cases]:
        if model_type not in MODEL_TYPES:
            continue
        config = {"decoder_start_token_id": 0} | pair_settings(model_type, ENCODER_DECODERS[model_type][case])
        loaded, hf = load_tiny(tmp_path / "hf", model_type, auto="AutoModelForSeq2SeqLM", **config)
        folder = f"{model_type}-{case}"
        export(loaded, tmp_path / "web" / folder, target="web")
        ids = torch.from_numpy(random_ids(80, 1, 30) + 10)
        # its cache counts the encoder's layers where their numbers differ
        asked = dict(max_new_tokens=COUNT, do_sample=False, num_beams=1, eos_token_id=None, use_cache=False)
        expected[folder] = hf.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0, 1:].tolist()
        requests.append({"folder": folder, "ids": ids[0].tolist(), "count": COUNT, "pair": True})
        shutil.rmtree(tmp_path / "hf")
    same_tokens(tmp_path, requests, expected)
    for folder in expected:
        record_errors("web", folder.replace("-", "@", 1), {"tokens": 0.0})


def test_two_precisions_of_an_encoder_decoder(tmp_path):
    """Both stay in the folder, each with two graphs; ONNX Runtime runs them. Oracle: our numpy back end."""
    config = pair_settings("t5", next(iter(ENCODER_DECODERS["t5"].values())) | dict(d_model=64, d_kv=16, d_ff=96))
    loaded, _ = load_tiny(tmp_path / "hf", "t5", auto="AutoModelForSeq2SeqLM", **config)
    read, written = random_ids(80, 1, 20) + 10, random_ids(80, 1, 12, seed=1) + 10

    def logits(runtime, model):
        session = require(runtime)[0].open(model, Options(capacity=12))
        session.source(read, np.ones_like(read))
        first = session.forward(written[:, :8], all_positions=True)[0]
        return np.concatenate([first, *(session.forward(written[:, i : i + 1]) for i in range(8, 12))])

    for precision in ("fp32", "q8"):
        export(loaded, tmp_path / "w", target="web", precision=precision)
        worst = np.abs(logits("onnxruntime", tmp_path / "w") - logits("numpy", load(tmp_path / "w"))).max()
        assert worst <= tolerances.FAMILY, precision
    graphs = sorted(file.name for file in (tmp_path / "w" / "onnx").iterdir() if file.suffix == ".onnx")
    assert graphs == [f"{n}{s}.onnx" for n in ("decoder_model_merged", "encoder_model") for s in ("", "_quantized")]
    said = json.loads((tmp_path / "w" / "config.json").read_text())["transformers.js_config"]
    assert said["use_external_data_format"] == dict.fromkeys(graphs, 1)


@node
def test_the_model_types_are_in_its_registry():
    text = (WEB / "node_modules/@huggingface/transformers/src/models/registry.js").read_text()
    assert set(re.findall(r"\['([\w-]+)', '", text)) >= MODEL_TYPES


def test_a_model_type_that_it_does_not_know(tmp_path):
    """One that is the same architecture takes its place, completely; without one, the nearest is named."""
    config = json.loads((ROOT / "edgeformer/models/named/minicpm-1b-sft-bf16.json").read_text())
    (tmp_path / "m").mkdir()
    small = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, vocab_size=97)
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(config | small | {"num_key_value_heads": 6, "dim_model_base": 16})
    )
    loaded, _ = saved(load(tmp_path / "m").spec, tmp_path / "s")
    export(loaded, tmp_path / "web", target="web")
    assert json.loads((tmp_path / "web" / "config.json").read_text())["model_type"] == "granite"
    other, _ = saved(small_spec(clip=3.0), tmp_path / "n")
    with pytest.raises(
        ExportError, match=r"the nearest is llama, .* blocks\.\*\.attention\.clip = 3\.0 \(none there\)"
    ):
        export(other, tmp_path / "x", target="web")
